// The page that a person sees: it starts the runner and shows what comes of it.

import { figure } from "./pictures.js";
import { getJson } from "./server.js";

const element = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");

async function prepare() {
  const job = await getJson("job.json");
  const images = job.images === 1 ? "1 image" : `${number(job.images)} images`;
  element("about").textContent =
    `${job.model}: ${images}, every code compared with what it has to be, without tolerance. ` +
    "Keep this page in front until the result is sent.";
  element("start").addEventListener("click", () => start(job));
  element("start").disabled = false;
  if (job.autostart) start(job);
}

function start(job) {
  element("start").disabled = true;
  element("start").textContent = "Running";
  element("progress").hidden = false;
  element("results").hidden = true;
  element("found").hidden = true;
  element("bar").max = job.levels.length;
  element("bar").value = 0;
  element("doing").textContent = "Loading the runtime and the model";
  show("verdict", "", "");
  show("sent", "", "");
  const worker = new Worker(new URL("runner.js", import.meta.url), { type: "module" });
  const end = (label) => {
    worker.terminate();
    element("progress").hidden = true;
    element("start").textContent = label;
    element("start").disabled = false;
  };
  const handlers = {
    progress: ({ what, done, total }) => {
      element("doing").textContent = `${what}: ${number(done)} of ${number(total)}`;
    },
    level: ({ done }) => {
      element("bar").value = done;
    },
    pictures: ({ seen }) => {
      element("pictures").replaceChildren(...seen.map((finding) => figure(job.pictures, job.shape, finding)));
      element("found").hidden = seen.length === 0;
    },
    report: ({ report }) => {
      showReport(report, job);
      show("sent", "Sending the result…", "");
    },
    sent: () => {
      show("sent", "The result is sent; the computer has it. You may close this page.", "");
      end("Done");
      element("start").disabled = true;
    },
    failed: ({ message }) => {
      show("verdict", `It did not work: ${message}`, "bad");
      show("sent", "", "");
      end("Try again");
    },
  };
  worker.onmessage = ({ data }) => handlers[data.kind](data);
  worker.onerror = (event) => {
    event.preventDefault();
    handlers.failed({ message: event.message || "This browser is too old to run the model: it needs module workers." });
  };
}

function showReport(report, job) {
  const tensors = report.levels.map((level) => [...level.tensors, level.logits, ...level.others]);
  const compared = sum(tensors.flat().map((tensor) => tensor.elements));
  const first = tensors.map((all) => all.find((tensor) => tensor.differing > 0)).find((tensor) => tensor);
  if (!report.compared) {
    show("verdict", "The model ran; there was nothing to compare with.", "");
  } else if (first === undefined) {
    show("verdict", `All ${number(compared)} codes equal.`, "good");
  } else {
    const where = `${number(first.differing)} of ${number(first.elements)} elements, first at [${first.index.join(", ")}]`;
    show("verdict", `Not equal. The first tensor that differs is ${first.tensor}: ${where}.`, "bad");
  }
  element("levels").replaceChildren(
    ...report.levels.map((level, i) => {
      const row = document.createElement("tr");
      const cells = [level.level, sum(tensors[i].map((t) => t.elements)), sum(tensors[i].map((t) => t.differing ?? 0))];
      row.append(...cells.map((cell) => withText("td", typeof cell === "number" ? number(cell) : cell)));
      return row;
    }),
  );
  element("facts").replaceChildren(
    ...facts(report, job).flatMap(([name, value]) => [withText("dt", name), withText("dd", value)]),
  );
  element("results").hidden = false;
}

function facts(report, job) {
  const { latency, threads, environment } = report;
  const rows = [];
  if (latency !== null) {
    const images = latency.images === 1 ? "one image" : `${latency.images} images`;
    rows.push([
      `Time of ${images}, over ${latency.runs} runs`,
      `median ${latency.median_ms.toFixed(2)} ms, 95 % within ${latency.p95_ms.toFixed(2)} ms`,
    ]);
  }
  rows.push(...outputs(report));
  let why = "";
  if (threads < job.threads) {
    why =
      "; browsers allow more only to pages that came over HTTPS or from the device itself " +
      `(${job.threads} were asked for)`;
  }
  rows.push(["Threads", `${threads}${why}`]);
  rows.push(["Runtime", `ONNX Runtime Web ${environment.onnxruntime}, ${environment.features.join(", ")}`]);
  return rows;
}

/** What came of each output, where there are several: over all levels, as the file is. */
function outputs(report) {
  const levels = report.levels.map((level) => [level.logits, ...level.others]);
  if (levels[0].length < 2) return [];
  return levels[0].map(({ tensor, dtype, shape }, i) => {
    const elements = sum(levels.map((all) => all[i].elements));
    const differing = sum(levels.map((all) => all[i].differing ?? 0));
    const found = report.compared ? `${number(differing)} of ${number(elements)} differ` : `${number(elements)} elements`;
    return [`Output ${tensor}, ${dtype} [${shape.slice(1).join(", ")}]`, found];
  });
}

function show(id, text, kind) {
  element(id).textContent = text;
  element(id).className = kind;
}

function withText(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

prepare().catch((error) => show("verdict", error.message, "bad"));
