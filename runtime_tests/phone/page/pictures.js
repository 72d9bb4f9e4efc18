// Pictures with what was found in them: boxes around things, or a colour over the pixels of each class.

const SHOWN_SCORE = 0.3; // of boxes that are drawn; the decoder keeps more for measuring
const NAMED = 8; // of these in words
const LEAST_SIDE = 320; // of a canvas, so that lines and words are fine ones
const OPACITY = 0.55;

/** Return a figure of one image. seen, shape: of job.json. finding: of findings.js. */
export function figure(seen, shape, finding) {
  const [, height, width] = shape;
  const made = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const zoom = Math.max(1, Math.ceil(LEAST_SIDE / Math.max(width, height)));
  [canvas.width, canvas.height] = [width * zoom, height * zoom];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture(seen, shape, finding.pixels), 0, 0, canvas.width, canvas.height);
  const words = finding.boxes ? drawBoxes(pen, zoom, seen, finding.boxes) : drawClasses(pen, canvas, seen, finding);
  const caption = document.createElement("figcaption");
  caption.append(...words);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption.textContent);
  made.append(canvas, caption);
  return made;
}

/** The image itself: in colour where it has three channels, otherwise its first channel in grey. */
function picture(seen, [channels, height, width], pixels) {
  const size = height * width;
  const order = channels === 3 ? (seen.channel_order === "BGR" ? [2, 1, 0] : [0, 1, 2]) : [0, 0, 0];
  return painted(width, height, (pixel) => [...order.map((channel) => pixels[channel * size + pixel]), 255]);
}

/** A canvas of which each pixel has a colour [red, green, blue, opacity]. */
function painted(width, height, colourOf) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  const data = pen.createImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) data.data.set(colourOf(pixel), 4 * pixel);
  pen.putImageData(data, 0, 0);
  return canvas;
}

function drawBoxes(pen, zoom, seen, boxes) {
  const shown = boxes.filter(({ score }) => score >= SHOWN_SCORE);
  pen.lineWidth = 3;
  for (const { box, class: cls } of [...shown].reverse()) {
    const [left, top, right, bottom] = box.map((side) => side * zoom);
    pen.strokeStyle = css(colour(cls));
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  if (shown.length === 0) return [`Nothing found with a score of ${SHOWN_SCORE} or more`];
  const named = shown.slice(0, NAMED).map(({ score, class: cls }) => label(cls, `${name(seen, cls)} ${score.toFixed(2)}`));
  return shown.length > NAMED ? [...named, `and ${shown.length - NAMED} more`] : named;
}

function drawClasses(pen, canvas, seen, { classes, height, width }) {
  const over = painted(width, height, (pixel) => [...colour(classes[pixel]), 255 * OPACITY]);
  pen.drawImage(over, 0, 0, canvas.width, canvas.height);
  const counts = new Map();
  for (const cls of classes) counts.set(cls, (counts.get(cls) ?? 0) + 1);
  const share = (cls) => `${((100 * counts.get(cls)) / classes.length).toFixed(0)} %`;
  return [...counts.keys()].sort((a, b) => a - b).map((cls) => label(cls, `${name(seen, cls)} ${share(cls)}`));
}

/** Words behind a spot of a class's colour. */
function label(cls, words) {
  const made = document.createElement("span");
  const spot = document.createElement("i");
  spot.style.backgroundColor = css(colour(cls));
  made.append(spot, words);
  return made;
}

function name(seen, cls) {
  return seen.class_names[cls] ?? `class ${cls}`;
}

/** A colour for each class: hues far from each other, however many there are. */
function colour(cls) {
  const hue = (cls * 137.508) % 360;
  return [0, 8, 4].map((shift) => {
    const at = (shift + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.42 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  });
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}
