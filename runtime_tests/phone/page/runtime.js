// ONNX Runtime Web as this project runs it: WebAssembly on the CPU, from the server that the page came from.

import * as ort from "./ort.wasm.min.mjs";

export const { Tensor } = ort;
export const VERSION = ort.env.versions.web;

// Two modules, each a function with one such instruction: browsers that know it say that they are valid.
const FEATURES = {
  "relaxed-simd": [65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2],
  simd128: [65, 0, 253, 15, 253, 98],
};

/** Choose the number of threads, once, before anything is loaded; return what it can be. */
export function useThreads(wanted) {
  const threads = self.crossOriginIsolated ? wanted : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = {
    mjs: new URL("ort-wasm-simd-threaded.mjs", import.meta.url).href,
    wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href,
  };
  ort.env.logLevel = "fatal";
  return threads;
}

/** Load a model from its bytes. */
export async function createSession(content, level) {
  try {
    return await ort.InferenceSession.create(content, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: level,
      logSeverityLevel: 4,
    });
  } catch (error) {
    throw new Error(`ONNX Runtime Web ${VERSION} cannot load the model at level ${level}: ${oneLine(error)}`);
  }
}

/** Say what runs the model, as DeviceEnvironment in targets/report.py has it. */
export function describeEnvironment() {
  return {
    onnxruntime: VERSION,
    numpy: null,
    python: null,
    browser: navigator.userAgent,
    machine: "wasm32",
    cpu: "not told by browsers",
    cpus: navigator.hardwareConcurrency || 1,
    features: wasmFeatures(),
  };
}

function wasmFeatures() {
  const known = Object.keys(FEATURES).filter((name) => {
    const body = [0, ...FEATURES[name], 11];
    const code = [10, body.length + 2, 1, body.length, ...body];
    return WebAssembly.validate(
      Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, ...code),
    );
  });
  return self.crossOriginIsolated ? [...known, "threads"] : known;
}

export function oneLine(error) {
  return String(error?.message ?? error).replace(/\s+/g, " ").trim();
}
