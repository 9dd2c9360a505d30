"use strict";

// The latent codes of imletriton/generator/latents.py, so that a seed and a number mean the same sample everywhere. There
// NumPy draws them, default_rng([seed, stream, block]).standard_normal(dtype=float32), 64 codes in a block. They agree
// to the bit, except that the last bit may differ in numbers beyond EDGE, one in 4,000.

const BLOCK = 64;
const BITS_64 = (1n << 64n) - 1n;
const BITS_128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n; // of PCG64 (O'Neill 2014)

/** The eight words that NumPy's SeedSequence makes of some words, all of them integers below 2^32. */
function seedWords(entropy) {
  let constant = 0x43b0d7e5;
  const hashed = (value, factor) => {
    value ^= constant;
    constant = Math.imul(constant, factor);
    value = Math.imul(value, constant);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (x, y) => {
    const value = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((k) => hashed(entropy[k] ?? 0, 0x931e8875));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from !== to) pool[to] = mixed(pool[to], hashed(pool[from], 0x931e8875));
    }
  }
  constant = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, k) => hashed(pool[k % 4], 0x58f38ded));
}

/** A function that returns the next 32 bits of NumPy's PCG64. */
function pcg64(entropy) {
  const words = seedWords(entropy).map(BigInt);
  const number = (k) => (words[k + 1] << 96n) | (words[k] << 64n) | (words[k + 3] << 32n) | words[k + 2];
  const increment = ((number(4) << 1n) | 1n) & BITS_128;
  const next = (state) => (state * MULTIPLIER + increment) & BITS_128;
  let state = next((increment + number(0)) & BITS_128);
  let kept = -1; // the upper half of the last 64 bits, until it is asked for
  return () => {
    if (kept >= 0) {
      const upper = kept;
      kept = -1;
      return upper;
    }
    state = next(state);
    const folded = (state >> 64n) ^ (state & BITS_64);
    const turn = state >> 122n;
    const output = ((folded >> turn) | (folded << (64n - turn))) & BITS_64;
    kept = Number(output >> 32n);
    return Number(output & 0xffffffffn);
  };
}

// The ziggurat method (Marsaglia and Tsang 2000) with NumPy's 256 layers, whose tables follow from these two numbers.
const EDGE = 3.6541528853610088;
const AREA = 0.004928673233974655;
const WIDTH = new Float32Array(256); // of a layer, in units of 2^-23
const HEIGHT = new Float32Array(256); // of the density at its edge
const INNER = new Uint32Array(256); // below it, a point is under the density for sure

function fillTables() {
  const scale = 2 ** 23;
  let edge = EDGE;
  let height = Math.exp(-0.5 * EDGE * EDGE);
  const base = AREA / height;
  INNER[0] = Math.floor((EDGE / base) * scale + 0.5);
  [WIDTH[0], HEIGHT[0]] = [base / scale, 1];
  [WIDTH[255], HEIGHT[255]] = [EDGE / scale, height];
  for (let layer = 254; layer > 0; layer--) {
    const next = Math.sqrt(-2 * Math.log(AREA / edge + height));
    INNER[layer + 1] = Math.floor((next / edge) * scale + 0.5);
    edge = next;
    height = Math.exp(-0.5 * edge * edge);
    [WIDTH[layer], HEIGHT[layer]] = [edge / scale, height];
  }
}
fillTables();

/** Fill a Float32Array with standard normal numbers. */
function fillNormal(numbers, bits) {
  const round = Math.fround;
  const uniform = () => round((bits() >>> 8) / 2 ** 24);
  const tail = (sign) => {
    for (;;) {
      const x = round(-round(1 / EDGE) * round(Math.log1p(-uniform())));
      const y = -round(Math.log1p(-uniform()));
      if (round(y + y) > round(x * x)) return sign * round(round(EDGE) + x);
    }
  };
  const draw = () => {
    for (;;) {
      const drawn = bits();
      const layer = drawn & 0xff;
      const place = drawn >>> 9;
      const x = round(place * WIDTH[layer]) * (drawn & 0x100 ? -1 : 1);
      if (place < INNER[layer]) return x;
      if (layer === 0) return tail((place >>> 8) & 1 ? -1 : 1);
      const y = round(round(round(HEIGHT[layer - 1] - HEIGHT[layer]) * uniform()) + HEIGHT[layer]);
      if (y < Math.exp(-0.5 * x * x)) return x;
    }
  };
  for (let k = 0; k < numbers.length; k++) numbers[k] = draw();
}

const blocks = new Map();

/** Latent code k of a random seed: standard normal numbers, a Float32Array of this dimension. */
function latentCode(seed, k, dimension) {
  const block = Math.floor(k / BLOCK);
  const name = `${seed} ${block} ${dimension}`;
  if (!blocks.has(name)) {
    if (blocks.size > 8) blocks.clear();
    const numbers = new Float32Array(BLOCK * dimension);
    fillNormal(numbers, pcg64([seed, 0, block]));
    blocks.set(name, numbers);
  }
  const start = (k % BLOCK) * dimension;
  return blocks.get(name).subarray(start, start + dimension);
}
