// Starts the worker that measures. Nobody looks at this page: what fails is told to the server.

import { post } from "./server.js";

const worker = new Worker(new URL("bench.js", import.meta.url), { type: "module" });
worker.onerror = (event) => {
  event.preventDefault();
  post("failure", event.message || "The browser could not start the worker.").catch(() => {});
};
