// Boxes out of a detector's maps: what qil_deploy/metrics/boxes.py does, whose words are explained there.

const LARGEST_EXPONENT = 10;
const MOST_CANDIDATES = 1000;
const SIDES = 4;
const VALUES = 5;

const sigmoid = (x) => 0.5 * (1 + Math.tanh(0.5 * x));

/**
 * Return the boxes of one image, the highest score first: { box: [left, top, right, bottom], score, class }.
 * decoder: as the file's metadata have it. maps: { dims: [C, H, W], data } for each of its outputs, as floats.
 */
export function decode(decoder, maps) {
  const found = maps.flatMap((map, i) => (decoder.anchors.length ? withAnchors : aroundCells)(decoder, i, map));
  found.sort((a, b) => b.score - a.score); // of equal scores the first one stays the first
  return suppress(found.slice(0, MOST_CANDIDATES), decoder.overlap);
}

function aroundCells(decoder, index, { dims, data }) {
  const [, height, width] = dims;
  const stride = decoder.strides[index];
  const found = [];
  for (let cell = 0; cell < height * width; cell++) {
    const at = (channel) => data[channel * height * width + cell];
    const x = ((cell % width) + 0.5) * stride;
    const y = (Math.floor(cell / width) + 0.5) * stride;
    const [left, top, right, bottom] = [0, 1, 2, 3].map((side) => stride * Math.exp(Math.min(at(side), LARGEST_EXPONENT)));
    const box = [x - left, y - top, x + right, y + bottom];
    found.push(...counted(decoder, box, (cls) => sigmoid(at(SIDES + cls))));
  }
  return found;
}

function withAnchors(decoder, index, { dims, data }) {
  const [, height, width] = dims;
  const stride = decoder.strides[index];
  const found = [];
  for (const [anchor, [anchorWidth, anchorHeight]] of decoder.anchors[index].entries()) {
    const first = anchor * (VALUES + decoder.classes);
    for (let cell = 0; cell < height * width; cell++) {
      const at = (value) => sigmoid(data[(first + value) * height * width + cell]);
      const x = ((cell % width) + 2 * at(0) - 0.5) * stride;
      const y = (Math.floor(cell / width) + 2 * at(1) - 0.5) * stride;
      const halfWidth = (anchorWidth * (2 * at(2)) ** 2) / 2;
      const halfHeight = (anchorHeight * (2 * at(3)) ** 2) / 2;
      const box = [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight];
      const object = at(4);
      found.push(...counted(decoder, box, (cls) => object * at(VALUES + cls)));
    }
  }
  return found;
}

/** The box once for each class whose score counts. */
function counted(decoder, box, scoreOf) {
  const found = [];
  for (let cls = 0; cls < decoder.classes; cls++) {
    const score = scoreOf(cls);
    if (score >= decoder.score) found.push({ box, score, class: cls });
  }
  return found;
}

/** Each box in turn drops those of its class behind it that overlap it by more. */
function suppress(found, overlap) {
  const kept = [];
  for (const one of found) {
    const covered = kept.some((other) => other.class === one.class && intersectionOverUnion(other.box, one.box) > overlap);
    if (!covered) kept.push(one);
  }
  return kept;
}

function intersectionOverUnion(a, b) {
  const area = ([left, top, right, bottom]) => Math.max(right - left, 0) * Math.max(bottom - top, 0);
  const shared = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  const either = area(a) + area(b) - shared;
  return either > 0 ? shared / either : 0;
}
