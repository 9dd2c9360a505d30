// Runs the generator in a worker, so that the page stays responsive. Requests are answered in order.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";

let session;
let last = Promise.resolve();

/** The content of a file, a Uint8Array; `arrived` is called with the number of bytes in each part. */
async function fetched(url, arrived) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} could not be loaded: the server says ${answer.status}`);
  const parts = [];
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    arrived(value.length);
  }
}

async function start({ model, runtime }) {
  let loaded = 0;
  const arrived = (bytes) => postMessage({ loaded: (loaded += bytes) });
  const [graph, wasm] = await Promise.all([fetched(model, arrived), fetched(runtime, arrived)]);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // more would need headers that simple servers do not send
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  postMessage({ ready: true });
}

async function draw({ z, count, truncation }) {
  const feeds = {
    z: new ort.Tensor("float32", z, [count, z.length / count]),
    truncation: new ort.Tensor("float32", Float32Array.of(truncation), []),
  };
  const { images } = await session.run(feeds, ["images"]);
  postMessage({ images: images.data });
}

onmessage = ({ data }) => {
  last = last
    .then(() => (data.model ? start(data) : draw(data)))
    .catch((error) => postMessage({ failed: error.message ?? String(error) }));
};
