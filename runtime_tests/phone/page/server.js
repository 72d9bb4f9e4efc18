// Talk to the server that this page came from. It stands in a folder of its own, so that all addresses are relative.

const PAUSE_MS = 250;

async function request(name, options) {
  let response;
  try {
    response = await fetch(name, { cache: "no-store", ...options });
  } catch {
    throw new Error("The computer that served this page does not answer. Is the command still running there?");
  }
  if (!response.ok) throw new Error((await response.text()) || `${name}: ${response.status}`);
  return response;
}

export async function getJson(name) {
  return (await request(name)).json();
}

export async function getBytes(name) {
  return new Uint8Array(await (await request(name)).arrayBuffer());
}

export async function post(name, text) {
  await request(name, { method: "POST", body: text, headers: { "Content-Type": "text/plain; charset=utf-8" } });
}

/** Tells the server, and whoever looks, that work goes on; not more often than the network bears. */
export class Progress {
  #show;
  #last = -Infinity;

  constructor(show) {
    this.#show = show;
  }

  async tell(what, done, total) {
    const now = performance.now();
    if (now - this.#last < PAUSE_MS) return;
    this.#last = now;
    this.#show(what, done, total);
    await post("progress", `${what}: ${done} of ${total}`);
  }
}
