// The masks that segmenters find: colours over the picture, and a list of what they cover.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour } from "./colours.js";
import { Count, Objects, Scene, Slider, partIn, usePointed } from "./objects.js";
import { Progress, keyOf, measured, percent, placeUnder } from "./parts.js";
import { eachPixel } from "./rle.js";
import { useAsked } from "./state.js";

const OPACITY = 0.6;
const LONGEST = 800; // pixels of the longer side of masks as they are drawn

export const Segment = ({ models, image, shown, show }) => html`
  <section class="scenes" aria-label="Masks">
    ${models.map(
      (model, place) => html`
        <${Card}
          key=${keyOf(model)}
          model=${model}
          image=${image}
          announced=${place === 0}
          kept=${partIn(shown.opacity)}
          onKeep=${(value) => show({ opacity: value }, true)}
        />
      `,
    )}
  </section>
`;

function Card({ model, image, announced, kept, onKeep }) {
  const key = keyOf(model);
  const state = useAsked(() => (signal) => segment(model, image, signal), [key, image]);
  const found = state.answer ?? (state.error ? undefined : state.before);
  const old = found && found.picture !== image && "old";
  return html`
    <article class=${`card ${old || (found || state.error ? "" : "waiting")}`} aria-label=${key}>
      <h2>${key} <small>${model.architecture}, ${measured(model)} on the test images</small></h2>
      ${found
        ? html`<${Found} model=${model} found=${found} kept=${kept} onKeep=${onKeep} announced=${announced} />`
        : html`<${Progress} state=${state} what="Drawing masks" />`}
    </article>
  `;
}

// Instances, and the classes that have none; of a model that tells no objects apart, the classes.
async function segment(model, image, signal) {
  const { instances: told, classes, ...answer } = await api.segment(
    keyOf(model),
    image.data,
    signal,
  );
  const instances = told ?? [];
  const counted = new Set(instances.map(({ category }) => category));
  const whole = classes.filter(({ category }) => !counted.has(category));
  const pixels = answer.image.width * answer.image.height;
  const objects = [...instances, ...whole].map((one, index) => ({
    ...one,
    index,
    label: model.classes.indexOf(one.category),
    note: `${percent(one.area / pixels)} of the picture`,
  }));
  return { ...answer, objects, picture: image, counted: told ? "object" : "area" };
}

function Found({ model, found, kept, onKeep, announced }) {
  const { image: size, objects, picture, warning } = found;
  const [moved, move] = useState();
  const opacity = moved ?? kept ?? OPACITY;
  const pointing = usePointed(found);
  const owners = useMemo(() => ownersOf(objects, size), [found]);
  const named = objects[pointing.at];
  return html`
    <div class="bar">
      <${Slider}
        label="Opacity"
        value=${opacity}
        onMove=${move}
        onKeep=${(value) => {
          move(undefined);
          onKeep(value);
        }}
      />
    </div>
    <${Count} objects=${objects} of=${found.counted} announced=${announced} />
    ${warning && html`<p><span class="warning">${warning}</span></p>`}
    <div class="found">
      <${Scene}
        model=${model}
        picture=${picture}
        size=${size}
        name=${`${picture.name} with masks over its objects`}
        over=${html`
          <${Masks} owners=${owners} objects=${objects} opacity=${opacity} pointing=${pointing} />
        `}
        named=${named}
        place=${named && owners.places[named.index]}
      />
      <${Objects} objects=${objects} pointing=${pointing} />
    </div>
  `;
}

// For each pixel as it is drawn the object that it belongs to, the best one if masks overlap, or
// -1; and where the masks lie, in parts of the picture.
function ownersOf(objects, { width, height }) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const [across, down] = [width, height].map((side) => Math.max(1, Math.round(scale * side)));
  const rows = Array.from({ length: down }, () => new Int16Array(across).fill(-1));
  const places = objects.map(() => ({ left: 1, top: 1, right: 0, bottom: 0 }));
  for (const { index, segmentation } of [...objects].reverse()) {
    const place = places[index];
    eachPixel(segmentation, across, down, (x, y) => {
      rows[y][x] = index;
      place.left = Math.min(place.left, x / across);
      place.top = Math.min(place.top, y / down);
      place.right = Math.max(place.right, (x + 1) / across);
      place.bottom = Math.max(place.bottom, (y + 1) / down);
    });
  }
  return { rows, places };
}

function Masks({ owners: { rows }, objects, opacity, pointing: { at, point, choose } }) {
  const canvas = useRef();
  const [height, width] = [rows.length, rows[0].length];
  useEffect(() => {
    const context = canvas.current.getContext("2d");
    const image = context.createImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const owner = rows[y][x];
        if (owner < 0) continue;
        const isEdge = rows[y][x + 1] !== owner || (rows[y + 1]?.[x] ?? -1) !== owner;
        const colour = isEdge ? [0, 0, 0] : classColour(objects[owner].label);
        const strength = at === undefined || owner === at ? 255 : 70;
        image.data.set([...colour, strength], 4 * (y * width + x));
      }
    }
    context.putImageData(image, 0, 0);
  }, [rows, at]);
  const under = (event) => {
    const [y, x] = placeUnder(event, canvas.current, rows);
    return rows[y][x] < 0 ? undefined : rows[y][x];
  };
  return html`
    <canvas
      ref=${canvas}
      class="masks"
      width=${width}
      height=${height}
      style=${{ opacity }}
      aria-hidden="true"
      onPointerMove=${(event) => point(under(event))}
      onPointerLeave=${() => point(undefined)}
      onClick=${(event) => choose(under(event))}
    />
  `;
}
