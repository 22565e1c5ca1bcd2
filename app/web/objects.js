// Objects in a picture: the picture with something over it, and the list beside it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour, inkOn } from "./colours.js";
import { Progress, keyOf, percent } from "./parts.js";
import { useAsked, useUrl } from "./state.js";

const css = (colour) => `rgb(${colour})`;

// An object is { index, category, label, score, note }: `index` names it, `label` is its class's
// place among the model's classes, `note` is for those who do not see the picture. An area, which is
// all of a class, has no score.

// The object that is pointed at, in the picture or the list, or else the one that was chosen.
export function usePointed(answer) {
  const [pointed, point] = useState();
  const [chosen, choose] = useState();
  useEffect(() => {
    point(undefined);
    choose(undefined);
  }, [answer]);
  return { at: pointed ?? chosen, chosen, point, choose: (index) => choose(index === chosen ? undefined : index) };
}

// How the part of a picture that a network sees fills its frame, by the policy that made it as large
// as the input.
const FITS = { crop: "contain", letterbox: "cover", stretch: "fill" };

async function seenBy(key, image, signal) {
  const [manifest, data] = await Promise.all([
    api.readManifest(key, signal),
    api.seen(key, image, 1, signal),
  ]);
  return { data, fit: FITS[manifest.resize.policy] };
}

// The picture with `over` on it: the file that was sent, or what the network sees where the browser
// shows another picture than the service reads, or none. `place` is where to name the object that
// is pointed at, in parts of the picture.
export function Scene({ model, picture, size, name, over, named, place }) {
  const [strange, reject] = useState();
  const isOwn = !picture.isReadOtherwise && strange !== picture;
  const seen = useAsked(
    () => (isOwn ? undefined : (signal) => seenBy(keyOf(model), picture.data, signal)),
    [picture, isOwn],
  );
  const shown = isOwn ? { data: picture.data } : seen.answer;
  const url = useUrl(shown?.data);
  const check = ({ target: { naturalWidth: width, naturalHeight: height } }) =>
    (width === size.width && height === size.height) || reject(picture);
  return html`
    <figure class="scene" style=${{ "--ratio": size.width / size.height }}>
      ${url &&
      html`
        <div class="frame">
          <img
            src=${url}
            alt=${name}
            style=${{ objectFit: shown.fit }}
            onLoad=${isOwn ? check : undefined}
            onError=${isOwn ? () => reject(picture) : undefined}
          />
          ${over} ${named && html`<${Name} object=${named} place=${place} />`}
        </div>
      `}
      <${Progress} state=${seen} what="Reading the picture" />
      <figcaption>
        ${picture.name}, ${size.width} × ${size.height} pixels${!isOwn &&
        `. The browser cannot show this file as the service reads it${
          url ? "; this is what the network sees" : ""
        }.`}
      </figcaption>
    </figure>
  `;
}

export const within = ({ width, height }, [x, y, across, down]) => ({
  left: x / width,
  top: y / height,
  right: (x + across) / width,
  bottom: (y + down) / height,
});

// Above its box, or below where there is no room, and towards the middle of the picture.
function Name({ object, place: { left, top, right, bottom } }) {
  const colour = classColour(object.label);
  const isAbove = top > 0.15 || bottom > 0.85;
  return html`
    <span
      class="named"
      style=${{
        ...(left + right > 1 ? { right: percent(1 - right) } : { left: percent(left) }),
        top: percent(isAbove ? Math.max(top, 0.15) : bottom),
        transform: isAbove ? "translateY(-100%)" : "",
        background: css(colour),
        color: inkOn(colour),
      }}
    >
      ${object.category}${object.score === undefined ? "" : ` ${percent(object.score, 0)}`}
    </span>
  `;
}

// One stop for the Tab key; the arrow keys lead from one object to the next.
export function Objects({
  label: name = "Objects, the best first",
  objects,
  pointing: { at, chosen, point, choose },
}) {
  const itself = useRef();
  const [reached, reach] = useState();
  const first = objects.find(({ index }) => index === reached)?.index ?? objects[0]?.index;
  const step = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...itself.current.querySelectorAll("button")];
    const next = by && buttons[buttons.indexOf(document.activeElement) + by];
    if (event.key === "Escape" && chosen !== undefined) choose(chosen);
    if (!next) return;
    event.preventDefault();
    next.focus();
  };
  return html`
    <ol ref=${itself} class="objects" aria-label=${name} onKeyDown=${step}>
      ${objects.map((object) => {
        const { index, category, label, score, note } = object;
        return html`
          <li key=${index}>
            <button
              type="button"
              class=${index === at ? "at" : ""}
              aria-pressed=${index === chosen}
              tabindex=${index === first ? 0 : -1}
              onFocus=${() => {
                reach(index);
                point(index);
              }}
              onBlur=${() => point(undefined)}
              onPointerEnter=${() => point(index)}
              onPointerLeave=${() => point(undefined)}
              onClick=${() => choose(index)}
            >
              <span class="swatch" style=${{ background: css(classColour(label)) }}></span>
              <span class="name">${category}</span>
              ${score !== undefined && html` <span class="value">${percent(score)}</span>`}
              <span class="unseen">, ${note}</span>
            </button>
          </li>
        `;
      })}
    </ol>
  `;
}

// "3 objects: 2 cell, 1 platelet"; "3 objects" if the only class has no other name.
export function Count({ objects, announced }) {
  const counts = new Map();
  objects.forEach(({ category }) => counts.set(category, (counts.get(category) ?? 0) + 1));
  const sorted = [...counts].sort(([, a], [, b]) => b - a);
  const isNamed = counts.size > 1 || !counts.has("object");
  const parts = isNamed ? sorted.map(([category, count]) => `${count} ${category}`) : [];
  const { length } = objects;
  return html`<${Answer} count=${length} of="object" parts=${parts} announced=${announced} />`;
}

export const Answer = ({ count, of, parts, announced }) => html`
  <p class="answer" aria-live=${announced ? "polite" : "off"} aria-atomic="true">
    <strong>${count || "No"} ${of}${count === 1 ? "" : "s"}</strong>
    ${parts.length > 0 && `: ${parts.join(", ")}`}
  </p>
`;

// Scores have six decimal places, so that what is shown is what they are compared with.
const exact = (part) => `${Number((100 * part).toFixed(4))}%`;

// A part from `least` to 1. It is told at every move, and kept at the last one.
export const Slider = ({ label, value, least = 0, onMove, onKeep }) => html`
  <label class="choice">
    <span>${label}</span>
    <input
      type="range"
      min=${least}
      max="1"
      step="0.01"
      value=${value}
      aria-valuetext=${exact(value)}
      onInput=${(event) => onMove(Number(event.target.value))}
      onChange=${(event) => onKeep(Number(event.target.value))}
    />
    <output>${exact(value)}</output>
  </label>
`;

// The part that an address says, or undefined.
export function partIn(text) {
  const value = Number(Number(text || NaN).toFixed(6));
  return value >= 0 && value <= 1 ? value : undefined;
}
