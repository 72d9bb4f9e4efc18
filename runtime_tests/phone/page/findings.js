// What outputs say of images, for whoever looks at the page: a detector's boxes, or the class of every pixel.

import { decode } from "./boxes.js";

/**
 * Return what was found in the first images of a batch: { pixels, boxes }, or { pixels, classes, height, width }.
 * seen: of job.json (pictures.py writes it), or null. outputs: { dims, data } by name. images: uint8, one behind the other.
 */
export function findings(seen, outputs, images, count, shape) {
  if (seen === null) return [];
  const size = shape.reduce((a, b) => a * b, 1);
  return Array.from({ length: count }, (_, image) => {
    const pixels = images.slice(image * size, (image + 1) * size);
    const maps = seen.outputs.map((output) => valuesOf(output, outputs.get(output.name), image));
    if (seen.decoder !== null) return { pixels, boxes: decode(seen.decoder, maps) };
    const [, height, width] = maps[0].dims;
    return { pixels, classes: largestChannels(maps[0]), height, width };
  });
}

/** One image's part of an output as floats: of codes (code - zero_point) * scale, in float32. */
function valuesOf({ scale, zero_point }, { dims, data }, image) {
  const size = dims.slice(1).reduce((a, b) => a * b, 1);
  const part = data.subarray(image * size, (image + 1) * size);
  const values = scale === null ? part : Float32Array.from(part, (code) => (code - zero_point) * Math.fround(scale));
  return { dims: dims.slice(1), data: values };
}

/** The channel that is largest, for each pixel; the first of equals. */
function largestChannels({ dims, data }) {
  const [channels, height, width] = dims;
  const found = new Uint16Array(height * width);
  for (let pixel = 0; pixel < found.length; pixel++) {
    for (let channel = 1; channel < channels; channel++) {
      const best = found[pixel] * found.length + pixel;
      if (data[channel * found.length + pixel] > data[best]) found[pixel] = channel;
    }
  }
  return found;
}
