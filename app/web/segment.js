// The masks that segmenters find: colours over the picture, and a list of what they cover.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour } from "./colours.js";
import { Answer, Count, Objects, Scene, Slider, partIn, usePointed, within } from "./objects.js";
import { Progress, keyOf, measured, percent, placeUnder } from "./parts.js";
import { boxOf, sampler } from "./rle.js";
import { useAsked } from "./state.js";

const OPACITY = 0.6;
const LONGEST = 800; // pixels of the longer side of masks as they are drawn
const WITHOUT = "Areas without objects";

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
        ? html`
            <${Found}
              model=${model}
              found=${found}
              kept=${kept}
              onKeep=${onKeep}
              announced=${announced}
            />
          `
        : html`<${Progress} state=${state} what="Drawing masks" />`}
    </article>
  `;
}

// Objects, and the areas of classes that have none; of a model that tells no objects apart, areas.
async function segment(model, image, signal) {
  const { instances, classes, ...answer } = await api.segment(keyOf(model), image.data, signal);
  const found = instances ?? [];
  const counted = new Set(found.map(({ category }) => category));
  const whole = classes.filter(({ category }) => !counted.has(category));
  const pixels = answer.image.width * answer.image.height;
  const regions = [...found, ...whole].map((one, index) => ({
    ...one,
    index,
    label: model.classes.indexOf(one.category),
    note: `${percent(one.area / pixels)} of the picture`,
  }));
  return {
    ...answer,
    regions,
    objects: instances && regions.slice(0, found.length),
    areas: regions.slice(found.length),
    picture: image,
  };
}

function Found({ model, found, kept, onKeep, announced }) {
  const { image: size, regions, objects, areas, picture, warning } = found;
  const [moved, move] = useState();
  const opacity = moved ?? kept ?? OPACITY;
  const pointing = usePointed(found);
  const tones = useMemo(() => tonesOf(regions, size), [found]);
  const named = regions[pointing.at];
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
    ${objects
      ? html`<${Count} objects=${objects} announced=${announced} />`
      : html`
          <${Answer}
            count=${areas.length}
            of="area"
            parts=${areas.map(({ category }) => category)}
            announced=${announced}
          />
        `}
    ${warning && html`<p><span class="warning">${warning}</span></p>`}
    <div class="found">
      <${Scene}
        model=${model}
        picture=${picture}
        size=${size}
        name=${`${picture.name} with masks over its objects`}
        over=${html`
          <${Masks} tones=${tones} regions=${regions} opacity=${opacity} pointing=${pointing} />
        `}
        named=${named}
        place=${named && within(size, named.bbox ?? boxOf(named.segmentation))}
      />
      <div class="listed">
        ${objects && html`<${Objects} objects=${objects} pointing=${pointing} />`}
        ${objects && areas.length > 0 && html`<h3>${WITHOUT}</h3>`}
        ${areas.length > 0 &&
        html`
          <${Objects}
            label=${objects ? WITHOUT : "Areas, one for each class"}
            objects=${areas}
            pointing=${pointing}
          />
        `}
      </div>
    </div>
  `;
}

// Rows of pixels as they are drawn: 0, or twice the number of the region, from 1, that a pixel
// belongs to, the best one if masks overlap; one more at the region's edge.
function tonesOf(regions, { width, height }) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const [across, down] = [width, height].map((side) => Math.max(1, Math.round(scale * side)));
  const rows = Array.from({ length: down }, () => new Uint16Array(across));
  const eachPixel = sampler([height, width], across, down);
  for (const { index, segmentation } of [...regions].reverse()) {
    eachPixel(segmentation.counts, (x, y) => {
      rows[y][x] = 2 * (index + 1);
    });
  }
  rows.forEach((row, y) =>
    row.forEach((tone, x) => {
      // What is to the right and below has no edge yet.
      if (tone && (row[x + 1] !== tone || rows[y + 1]?.[x] !== tone)) row[x] = tone + 1;
    }),
  );
  return rows;
}

// The colour of each tone, as a pixel of a canvas has it.
function coloursOf(regions, at) {
  const bytes = new Uint8Array(8 * (regions.length + 1));
  for (const { index, label } of regions) {
    const strength = at === undefined || index === at ? 255 : 70;
    bytes.set([...classColour(label), strength, 0, 0, 0, strength], 8 * (index + 1));
  }
  return new Uint32Array(bytes.buffer);
}

function Masks({ tones: rows, regions, opacity, pointing: { at, point, choose } }) {
  const canvas = useRef();
  const [height, width] = [rows.length, rows[0].length];
  useEffect(() => {
    const context = canvas.current.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = coloursOf(regions, at);
    let place = 0;
    for (const row of rows) for (const tone of row) pixels[place++] = colours[tone];
    context.putImageData(image, 0, 0);
  }, [rows, at]);
  const under = (event) => {
    const [y, x] = placeUnder(event, canvas.current, rows);
    return rows[y][x] ? (rows[y][x] >> 1) - 1 : undefined;
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
