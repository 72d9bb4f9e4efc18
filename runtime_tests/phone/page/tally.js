// What differs in one tensor, batch by batch, and its digest: the counterpart of TensorTally in device_runner.py.

import { Sha256 } from "./sha256.js";

/** Array types by the names that numpy has for the types of elements. */
export const ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  int32: Int32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
  float32: Float32Array,
  float64: Float64Array,
};

export class TensorTally {
  #digest = new Sha256();
  #name;
  #type = "";
  #shape = [];
  #images = 0;
  #elements = 0;
  #differing = 0;
  #largestStep = 0;
  #index = null;
  #compared = false;

  constructor(name) {
    this.#name = name;
  }

  /**
   * Count the tensor of the next images.
   * found: { type, dims, data }, image axis first. expected: the same, or null where there is nothing to compare with.
   */
  add(found, expected) {
    const { data, dims, type } = found;
    // With 0 in place of -0, which is equal to it.
    const canonical = type.startsWith("float") ? data.map((value) => value + 0) : data;
    this.#digest.update(new Uint8Array(canonical.buffer, canonical.byteOffset, canonical.byteLength));
    this.#type = type;
    this.#shape = dims.slice(1);
    if (expected !== null) this.#compare(found, expected);
    this.#images += dims[0];
    this.#elements += (expected ?? found).data.length;
  }

  #compare(found, expected) {
    this.#compared = true;
    if (found.type !== expected.type || found.dims.join() !== expected.dims.join()) {
      this.#differing += expected.data.length;
      this.#index ??= [this.#images, ...expected.dims.slice(1).fill(0)];
      return;
    }
    const a = found.data;
    const b = expected.data;
    for (let i = 0; i < a.length; i++) {
      if (a[i] === b[i]) continue; // NaN is not equal to anything, itself included
      this.#differing++;
      this.#index ??= this.#position(i, found.dims);
      const step = Math.abs(Number(a[i]) - Number(b[i]));
      if (Number.isFinite(step) && step > this.#largestStep) this.#largestStep = step;
    }
  }

  #position(at, dims) {
    const position = [];
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      position.unshift(at % dims[axis]);
      at = Math.floor(at / dims[axis]);
    }
    position[0] += this.#images;
    return position;
  }

  /** The tensor's entry of the report; nothing may be added after it. */
  result() {
    return {
      tensor: this.#name,
      dtype: this.#type,
      shape: [this.#images, ...this.#shape],
      sha256: this.#digest.digest(),
      elements: this.#elements,
      differing: this.#compared ? this.#differing : null,
      largest_step: this.#compared ? this.#largestStep : null,
      index: this.#index,
    };
  }
}
