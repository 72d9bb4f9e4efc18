// The worker that measures: in each round every model once, in the order that job.json gives for it, and the first model
// a second time as its own control. Right before a measured run the same model runs once uncounted.

import { Tensor, createSession, describeEnvironment, oneLine, useThreads } from "./runtime.js";
import { Progress, getBytes, getJson, post } from "./server.js";
import { ARRAYS } from "./tally.js";

const NANOSECONDS = 1e6;

/** Load a model and its inputs, and run it once; return { session, inputs }, or { reason } where that fails. */
async function load(index, inputs) {
  try {
    const session = await createSession(await getBytes(`model-${index}`), "all");
    const content = await getBytes(`inputs-${index}`);
    let at = 0;
    const feeds = {};
    for (const { name, dtype, shape } of inputs) {
      const size = shape.reduce((a, b) => a * b, 1) * ARRAYS[dtype].BYTES_PER_ELEMENT;
      feeds[name] = new Tensor(dtype, new ARRAYS[dtype](content.slice(at, at + size).buffer), shape);
      at += size;
    }
    const model = { session, feeds };
    await timeOnce(model);
    return model;
  } catch (error) {
    return { reason: oneLine(error) };
  }
}

async function timeOnce({ session, feeds }) {
  const start = performance.now();
  const outputs = await session.run(feeds);
  const elapsed = performance.now() - start;
  for (const tensor of Object.values(outputs)) tensor.dispose();
  return Math.round(NANOSECONDS * elapsed);
}

async function main() {
  const job = await getJson("job.json");
  const progress = new Progress(() => {});
  const threads = useThreads(job.threads);
  const models = [];
  for (const [index, { inputs }] of job.models.entries()) {
    models.push(await load(index, inputs));
    await progress.tell("loading", index + 1, job.models.length);
  }
  const first = models.findIndex((model) => model.reason === undefined);
  const runs = [...models, null].map(() => []);
  for (const [round, order] of job.orders.entries()) {
    for (const slot of order) {
      const model = models[slot === models.length ? first : slot];
      if (model === undefined || model.reason !== undefined) continue;
      await timeOnce(model);
      const elapsed = await timeOnce(model);
      if (round >= job.warmup) runs[slot].push(elapsed);
    }
    await progress.tell("measuring", round + 1, job.orders.length);
  }
  const report = {
    schema: job.schema,
    threads,
    runs_ns: runs.slice(0, -1),
    control_ns: runs.at(-1),
    reasons: models.map((model) => model.reason ?? null),
    environment: describeEnvironment(),
  };
  await post("result", JSON.stringify(report));
}

main().catch((error) => post("failure", oneLine(error)).catch(() => {}));
