// The worker that runs a model and compares it with its golden vectors: what device_runner.py does, in a browser.
//
// job.json says what to do (verification.py writes it). At each optimization level the golden images go through the file
// as it is, and once more with every golden tensor as an output. Images and golden tensors come in chunks, so that data
// sets of any length take a bounded amount of memory.

import { findings } from "./findings.js";
import { Tensor, createSession, describeEnvironment, oneLine, useThreads } from "./runtime.js";
import { Progress, getBytes, getJson, post } from "./server.js";
import { sha256 } from "./sha256.js";
import { ARRAYS, TensorTally } from "./tally.js";

const WARMUP = 3;
const KEPT_BYTES = 64 * 2 ** 20;

/** Chunks of images and golden tensors: kept as long as they are few, else fetched each time they are needed. */
class Chunks {
  #job;
  #kept = new Map();
  #bytes = 0;

  constructor(job) {
    this.#job = job;
  }

  /** Yield { images, count, start, golden } batch by batch; golden maps names to { type, dims, data }. */
  async *batches(batch) {
    let start = 0;
    for (const [index, count] of this.#job.chunks.entries()) {
      const parts = this.#split(await this.#bytesOf(index), count);
      for (let at = 0; at < count; at += batch) {
        const size = Math.min(batch, count - at);
        const [images, ...tensors] = parts.map((part) => slice(part, at, size));
        const golden = new Map(tensors.map((tensor, i) => [this.#job.tensors[i].name, tensor]));
        yield { images: images.data, count: size, start: start + at, golden };
      }
      start += count;
    }
  }

  async #bytesOf(index) {
    if (this.#kept.has(index)) return this.#kept.get(index);
    const content = await getBytes(`chunk-${index}`);
    if (this.#bytes + content.length <= KEPT_BYTES) {
      this.#bytes += content.length;
      this.#kept.set(index, content);
    }
    return content;
  }

  /** Cut a chunk into the images and the tensors that it holds, one behind the other. */
  #split(content, count) {
    let at = 0;
    const parts = [{ dtype: "uint8", shape: this.#job.shape }, ...this.#job.tensors].map(({ dtype, shape }) => {
      const length = count * product(shape);
      const bytes = content.slice(at, at + length * ARRAYS[dtype].BYTES_PER_ELEMENT);
      at += bytes.length;
      return { type: dtype, dims: [count, ...shape], data: new ARRAYS[dtype](bytes.buffer) };
    });
    if (at !== content.length) throw new Error(`A chunk of golden vectors has ${content.length} bytes, not ${at}.`);
    return parts;
  }
}

/** The model's own input of some images; a fixed batch is filled up with blank ones. */
function feeds(job, images, count) {
  const size = product(job.shape);
  const batch = job.fixed_batch ?? count;
  const pixels = new Uint8Array(batch * size);
  pixels.set(images.subarray(0, count * size));
  const dims = [batch, ...job.shape];
  if (!job.takes_float) return { [job.input]: new Tensor("uint8", pixels, dims) };
  const x = new Float32Array(pixels.length);
  const [channels, height, width] = job.shape;
  const shift = job.shift.map(Math.fround);
  const factor = job.factor.map(Math.fround);
  for (let i = 0; i < x.length; i++) {
    const channel = Math.floor(i / (height * width)) % channels;
    x[i] = Math.fround(pixels[i] - shift[channel]) * factor[channel];
  }
  return { [job.input]: new Tensor("float32", x, dims) };
}

async function run(job, session, images, count, names) {
  const outputs = await session.run(feeds(job, images, count), names);
  return new Map(
    names.map((name) => {
      const { type, dims, data } = outputs[name];
      if (dims[0] !== (job.fixed_batch ?? count)) {
        throw new Error(`The runtime returns ${name} of shape [${dims.join(", ")}] for ${count} images.`);
      }
      const found = slice({ type, dims: [...dims], data: data.slice() }, 0, count);
      outputs[name].dispose();
      return [name, found];
    }),
  );
}

async function runPass(job, chunks, content, level, names, what, progress, eachBatch) {
  const session = await createSession(content, level);
  try {
    for await (const { images, count, start, golden } of chunks.batches(job.batch)) {
      eachBatch(await run(job, session, images, count, names), golden, { images, count });
      await progress.tell(what, start + count, job.images);
    }
  } finally {
    await session.release();
  }
}

async function runLevel(job, chunks, models, level, progress) {
  const outputs = job.outputs.map((name) => new TensorTally(name));
  const predictions = [];
  const seen = [];
  await runPass(job, chunks, models.plain, level, job.outputs, level, progress, (found, golden, { images, count }) => {
    outputs.forEach((tally, i) => tally.add(found.get(job.outputs[i]), golden.get(job.outputs[i]) ?? null));
    const wanted = Math.min(count, (job.pictures?.count ?? 0) - seen.length);
    seen.push(...findings(job.pictures, found, images, wanted, job.shape));
    if (job.has_classes) predictions.push(...classes(found.get(job.outputs[0])));
  });
  const names = job.tensors.map((tensor) => tensor.name);
  const tallies = models.all === null ? [] : names.map((name) => new TensorTally(name));
  if (models.all !== null) {
    const what = `${level}, every tensor`;
    await runPass(job, chunks, models.all, level, names, what, progress, (found, golden) => {
      tallies.forEach((tally, i) => tally.add(found.get(names[i]), golden.get(names[i])));
    });
  }
  const [logits, ...others] = outputs.map((tally) => tally.result());
  return { entry: { level, predictions, logits, tensors: tallies.map((tally) => tally.result()), others }, seen };
}

/** Time single runs at the default level, as the file is. */
async function measure(job, chunks, model, progress) {
  if (job.repeats === 0) return null;
  const session = await createSession(model, "all");
  const { value } = await chunks.batches(1).next();
  const input = feeds(job, value.images, 1);
  const times = [];
  for (let i = -WARMUP; i < job.repeats; i++) {
    const start = performance.now();
    const outputs = await session.run(input, job.outputs);
    if (i >= 0) times.push(performance.now() - start);
    job.outputs.forEach((name) => outputs[name].dispose());
    await progress.tell("latency", Math.max(i + 1, 0), job.repeats);
  }
  await session.release();
  times.sort((a, b) => a - b);
  return {
    runs: job.repeats,
    images: job.fixed_batch ?? 1,
    median_ms: percentile(times, 0.5),
    p95_ms: percentile(times, 0.95),
  };
}

/** As numpy has it: between the two nearest samples, linearly. */
function percentile(sorted, share) {
  const at = share * (sorted.length - 1);
  const below = sorted[Math.floor(at)];
  return below + (sorted[Math.ceil(at)] - below) * (at - Math.floor(at));
}

/** The class of each image: the first of the largest logits, -1 where one is NaN. */
function classes({ dims, data }) {
  const found = [];
  for (let start = 0; start < data.length; start += dims[1]) {
    const logits = data.subarray(start, start + dims[1]);
    found.push(logits.some(Number.isNaN) ? -1 : logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
  }
  return found;
}

function slice({ type, dims, data }, start, count) {
  const size = product(dims.slice(1));
  return { type, dims: [count, ...dims.slice(1)], data: data.subarray(start * size, (start + count) * size) };
}

function product(sizes) {
  return sizes.reduce((a, b) => a * b, 1);
}

async function main() {
  const job = await getJson("job.json");
  const progress = new Progress((what, done, total) => postMessage({ kind: "progress", what, done, total }));
  const threads = useThreads(job.threads);
  const plain = await getBytes("model.onnx");
  const models = { plain, all: job.every_tensor ? await getBytes("model-with-outputs.onnx") : null };
  const chunks = new Chunks(job);
  const levels = [];
  for (const level of job.levels) {
    const { entry, seen } = await runLevel(job, chunks, models, level, progress);
    levels.push(entry);
    if (levels.length === job.levels.length) postMessage({ kind: "pictures", seen });
    postMessage({ kind: "level", done: levels.length, total: job.levels.length });
  }
  const report = {
    schema: job.schema,
    model: job.model,
    sha256: sha256(plain),
    images: job.images,
    compared: job.tensors.length > 0,
    threads,
    batch: job.batch,
    levels,
    latency: await measure(job, chunks, plain, progress),
    environment: describeEnvironment(),
  };
  postMessage({ kind: "report", report });
  await post("result", JSON.stringify(report));
  postMessage({ kind: "sent" });
}

main().catch(async (error) => {
  const message = oneLine(error);
  // First the server: the page ends this worker when it hears of it.
  await post("failure", message).catch(() => {});
  postMessage({ kind: "failed", message });
});
