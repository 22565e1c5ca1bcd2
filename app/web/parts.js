// Components shared by several views.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { signedColour } from "./colours.js";
import { askAgain } from "./state.js";

export const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;

export const keyOf = ({ name, version }) => `${name}/${version}`;

// The figure of a model on the test images that its task has.
export function measured({ test_accuracy: accuracy, test_map: map, test_iou: iou }) {
  if (accuracy !== undefined) return percent(accuracy);
  return map !== undefined ? `mAP ${percent(map)}` : `IoU ${percent(iou)}`;
}

export const number = (value) =>
  Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 0.001)
    ? value.toExponential(1)
    : value.toFixed(3);

export const Progress = ({ state, what }) =>
  state.error
    ? html`
        <p class="problem" role="alert">
          ${state.error.message} ${" "}
          ${state.error.passing &&
          html`<button type="button" onClick=${askAgain}>Try again</button>`}
        </p>
      `
    : state.waiting
      ? html`<p class="waiting" role="status">${what}…</p>`
      : null;

export const Choice = ({ label, value, options, onChoose }) => html`
  <label class="choice">
    <span>${label}</span>
    <select value=${value} onChange=${(event) => onChoose(event.target.value)}>
      ${options.map(
        ([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`,
      )}
    </select>
  </label>
`;

// An outlined square on a map, in units of its values: the cursor, or a filter's receptive patch.
export const Square = ({ rows, top, left, side = 1 }) => html`
  <svg viewBox=${`0 0 ${rows[0].length} ${rows.length}`} aria-hidden="true">
    <rect class="halo" x=${left} y=${top} width=${side} height=${side} />
    <rect x=${left} y=${top} width=${side} height=${side} />
  </svg>
`;

// Scroll an element into view when one of the dependencies changes.
export function useInSight(asked) {
  const place = useRef();
  useEffect(() => place.current?.scrollIntoView({ block: "nearest", inline: "nearest" }), asked);
  return place;
}

// Whether an element has been in view since it was `complete`, when it has its height.
export function useSeen(complete) {
  const place = useRef();
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    if (!complete) return undefined;
    const observer = new IntersectionObserver(
      ([entry]) => entry.isIntersecting && setSeen(true),
    );
    observer.observe(place.current);
    return () => observer.disconnect();
  }, [complete]);
  return [place, seen];
}

// A layer name with line break opportunities after its dots.
export const breakable = (name) =>
  name.split(".").map((part, place) => html`${place ? html`.<wbr />` : ""}${part}`);

// A feature map with one pixel a value; the style sheet enlarges it.
export function Map2D({ rows, top, label }) {
  const canvas = useRef();
  useEffect(() => {
    const [height, width] = [rows.length, rows[0].length];
    const context = canvas.current.getContext("2d");
    const image = context.createImageData(width, height);
    rows.forEach((row, y) =>
      row.forEach((value, x) => {
        image.data.set([...signedColour(value / top), 255], 4 * (y * width + x));
      }),
    );
    context.putImageData(image, 0, 0);
  }, [rows, top]);
  return html`
    <canvas
      ref=${canvas}
      class="map"
      width=${rows[0].length}
      height=${rows.length}
      role="img"
      aria-label=${label}
    />
  `;
}

// Row and column of the value under the pointer.
export function placeUnder(event, element, rows) {
  const box = element.getBoundingClientRect();
  const within = (part, count) => Math.max(0, Math.min(count - 1, Math.floor(part * count)));
  return [
    within((event.clientY - box.top) / box.height, rows.length),
    within((event.clientX - box.left) / box.width, rows[0].length),
  ];
}

export const largest = (values) =>
  values.flat(Infinity).reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
