"use strict";

const get = (id) => document.getElementById(id);
const facts = document.querySelector("main").dataset;
const resolution = Number(facts.resolution);
const dimension = Number(facts.latentDim);
const count = resolution <= 64 ? 24 : resolution <= 128 ? 12 : 6;
const SECONDS = 3; // of an animation from one sample to the next
const FRAMES = 12; // of it at least, where the model is slow
const CALL = 80; // milliseconds that one call of the model should take, so that the page stays responsive

const shown = { seed: 0, variety: 1, position: 0 }; // position: how many rows of samples the animation has passed
let animating = false;
let large = null; // the tile that is shown large
let batch = 1; // tiles that one call of the model draws

// -- words ------------------------------------------------------------------------------------------------------------

function tell(words, wrong = false) {
  get("words").textContent = words;
  get("words").classList.toggle("wrong", wrong);
  get("status").hidden = !words;
  get("progress").hidden = true;
}

function fail(reason) {
  if (worker) worker.onmessage = null; // so that no later message hides the reason
  worker?.terminate();
  for (const control of document.querySelectorAll("main button, main input")) control.disabled = true;
  tell(reason, true);
}

function loading(bytes) {
  const mega = (number) => (number / 1e6).toFixed(1);
  get("progress").value = bytes;
  get("words").textContent =
    bytes < facts.bytes ? `Loading the model: ${mega(bytes)} of ${mega(facts.bytes)} MB` : "Starting the model ...";
}

// -- the model --------------------------------------------------------------------------------------------------------

let worker;
const asked = []; // the promises of images, in order

/** Draw samples of latent codes, Float32Array [n * dimension]: a promise of their bytes, Uint8Array [n * 3 * H * W]. */
function draw(z, truncation = 1) {
  return new Promise((resolve, reject) => {
    asked.push({ resolve, reject });
    worker.postMessage({ z, count: z.length / dimension, truncation });
  });
}

function start() {
  if (location.protocol === "file:") {
    return fail("Browsers load a model from a web server only: run `python -m http.server` in this folder, and open http://localhost:8000");
  }
  if (typeof WebAssembly !== "object") {
    return fail("This browser has no WebAssembly, or it is switched off, as in lockdown modes; the model needs it. Allow it, or use a current Firefox, Chrome, Edge or Safari.");
  }
  const broken = "The program that draws the pictures could not be loaded";
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = (event) => {
    event.preventDefault();
    fail(`${broken}${event.message ? ` (${event.message})` : ""}: a file of this page is missing, or this browser is too old for it.`);
  };
  worker.onmessage = ({ data }) => {
    if (data.failed) {
      asked.shift()?.reject(new Error(data.failed));
      fail(`The model could not run here: ${data.failed.replace(/\.$/, "")}.`);
    } else if (data.ready) {
      tell("");
      for (const button of document.querySelectorAll("main button")) button.disabled = false;
      work();
    } else if (data.images) {
      asked.shift().resolve(data.images);
    } else {
      loading(data.loaded);
    }
  };
  worker.postMessage({ model: facts.model, runtime: facts.runtime });
}

// -- the grid ---------------------------------------------------------------------------------------------------------

const tiles = Array.from({ length: count }, (_, place) => {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = resolution;
  button.type = "button";
  button.disabled = true;
  button.append(canvas);
  const tile = { place, button, canvas, stale: true };
  button.onclick = () => enlarge(tile);
  get("grid").append(button);
  return tile;
});
get("grid").classList.toggle("few", count < 12);

/** The latent code of a tile: a sample's, or spherically between two of them. */
function codeOf(tile) {
  const row = Math.floor(shown.position);
  const way = shown.position - row;
  const from = latentCode(shown.seed, tile.place + row * count, dimension);
  if (way === 0) return from;
  const to = latentCode(shown.seed, tile.place + (row + 1) * count, dimension);
  const dot = (a, b) => a.reduce((sum, x, k) => sum + x * b[k], 0);
  const angle = Math.acos(Math.max(-1, Math.min(1, dot(from, to) / Math.sqrt(dot(from, from) * dot(to, to)))));
  if (Math.sin(angle) < 1e-6) return from.map((x, k) => x + way * (to[k] - x));
  const [a, b] = [Math.sin((1 - way) * angle) / Math.sin(angle), Math.sin(way * angle) / Math.sin(angle)];
  return from.map((x, k) => a * x + b * to[k]);
}

/** Put an image, bytes [3 * H * W], on a tile, and into the dialog where it is shown large. */
function paint(tile, image) {
  const pixels = resolution * resolution;
  const data = new ImageData(resolution, resolution);
  for (let k = 0; k < pixels; k++) {
    data.data.set([image[k], image[k + pixels], image[k + 2 * pixels], 255], 4 * k);
  }
  tile.canvas.getContext("2d").putImageData(data, 0, 0);
  tile.canvas.classList.add("drawn");
  if (tile === large) copyLarge();
}

function redraw() {
  for (const tile of tiles) tile.stale = true;
  wake();
}

let wake = () => {};
const woken = () => new Promise((resolve) => (wake = resolve));

/** Draw what is stale, a few tiles at a time, for as long as the page is open. */
async function work() {
  let last = performance.now();
  for (;;) {
    if (animating && !tiles.some((tile) => tile.stale)) {
      const now = performance.now();
      shown.position += Math.min((now - last) / 1000 / SECONDS, 1 / FRAMES);
      last = now;
      for (const tile of large ? [large] : tiles) tile.stale = true;
      if (large) describeLarge();
      await new Promise(requestAnimationFrame); // which pauses while the page is hidden
    }
    const chosen = tiles.filter((tile) => tile.stale).slice(0, batch);
    if (!chosen.length) {
      await woken();
      last = performance.now();
      continue;
    }
    const z = new Float32Array(chosen.length * dimension);
    chosen.forEach((tile, k) => z.set(codeOf(tile), k * dimension));
    for (const tile of chosen) tile.stale = false;
    const began = performance.now();
    let images;
    try {
      images = await draw(z, shown.variety);
    } catch {
      return; // the reason is on the page
    }
    batch = Math.max(1, Math.min(count, Math.round((CALL * chosen.length) / (performance.now() - began + 1))));
    chosen.forEach((tile, k) => paint(tile, images.subarray((k * images.length) / chosen.length, ((k + 1) * images.length) / chosen.length)));
  }
}

// -- one sample, large ------------------------------------------------------------------------------------------------

function enlarge(tile) {
  large = tile;
  copyLarge();
  describeLarge();
  if (!get("large").open) get("large").showModal();
}

function copyLarge() {
  get("canvas").getContext("2d").drawImage(large.canvas, 0, 0);
}

function describeLarge() {
  const number = large.place + Math.floor(shown.position) * count;
  const between = Number.isInteger(shown.position) ? `Sample ${number}` : `Between samples ${number} and ${number + count}`;
  const variety = shown.variety === 1 ? "" : `, variety ${shown.variety}`;
  get("caption").textContent = `${between} of seed ${shown.seed}${variety}`;
}

function move(by) {
  enlarge(tiles[(large.place + by + count) % count]);
}

get("previous").onclick = () => move(-1);
get("next").onclick = () => move(1);
get("close").onclick = () => get("large").close();
get("large").onclose = () => {
  large = null;
  if (animating) redraw();
};
get("large").onclick = (event) => {
  if (event.target === get("large")) get("large").close(); // outside its content
};
get("large").onkeydown = ({ key }) => {
  if (key === "ArrowLeft" || key === "ArrowRight") move(key === "ArrowLeft" ? -1 : 1);
};
get("save").onclick = (event) => {
  event.preventDefault();
  const name = `${facts.name} ${get("caption").textContent}.png`.replace(/[^\w.]+/g, "-").toLowerCase();
  get("canvas").toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
};

// -- controls, and the address, which names the seed and the variety ----------------------------------------------------

const address = () => `#seed=${shown.seed}&variety=${shown.variety}`;

/** Show the seed and the variety that the address names, where they are valid. */
function follow() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name, most) => {
    const value = Number(said.get(name) ?? NaN);
    return value >= 0 && value <= most ? value : null;
  };
  shown.seed = Math.floor(number("seed", 2 ** 32 - 1) ?? 0);
  shown.variety = number("variety", 1.5) ?? 1;
  shown.position = 0;
  reflect();
}

function reflect() {
  get("seed").value = shown.seed;
  get("variety").value = shown.variety;
  get("variety-shown").textContent = shown.variety.toFixed(2);
  for (const { place, button } of tiles) button.setAttribute("aria-label", `Sample ${place} of seed ${shown.seed}`);
  redraw();
}

function show(seed) {
  shown.seed = seed;
  shown.position = 0;
  history.pushState(null, "", address()); // so that "back" shows the earlier samples
  reflect();
}

function animate(on) {
  animating = on;
  get("animate").setAttribute("aria-pressed", on);
  get("animate").textContent = on ? "Stop" : "Animate";
  wake();
}

get("new").onclick = () => show(Math.floor(Math.random() * 1e6));
get("animate").onclick = () => animate(!animating);
get("seed").onchange = () => {
  if (get("seed").checkValidity()) show(get("seed").valueAsNumber);
};
get("variety").oninput = () => {
  shown.variety = get("variety").valueAsNumber;
  history.replaceState(null, "", address());
  reflect();
};
get("controls").onsubmit = (event) => event.preventDefault();
addEventListener("popstate", follow);

follow();
start();
