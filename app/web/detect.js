// The objects that detectors find: boxes over the picture, and a list of them.

import { html, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour } from "./colours.js";
import { Count, Objects, Scene, Slider, partIn, usePointed, within } from "./objects.js";
import { Progress, keyOf, measured } from "./parts.js";
import { useAsked } from "./state.js";

// A picture is asked about once, down to a score that is hardly ever wanted; the slider only hides.
const LEAST = 0.01;

export const Detect = ({ models, image, shown, show }) => html`
  <section class="scenes" aria-label="Objects">
    ${models.map(
      (model, place) => html`
        <${Card}
          key=${keyOf(model)}
          model=${model}
          image=${image}
          announced=${place === 0}
          kept=${partIn(shown.threshold)}
          onKeep=${(value) => show({ threshold: value }, true)}
        />
      `,
    )}
  </section>
`;

function Card({ model, image, announced, kept, onKeep }) {
  const key = keyOf(model);
  const manifest = useAsked(() => (signal) => api.readManifest(key, signal), [key]);
  const state = useAsked(() => (signal) => detect(model, image, signal), [key, image]);
  const found = state.answer ?? (state.error ? undefined : state.before);
  const own = manifest.answer?.score_threshold;
  const ready = found && own !== undefined;
  const failed = state.error ? state : manifest;
  const old = ready && found.picture !== image && "old";
  return html`
    <article class=${`card ${old || (ready || failed.error ? "" : "waiting")}`} aria-label=${key}>
      <h2>${key} <small>${model.architecture}, ${measured(model)} on the test images</small></h2>
      ${ready
        ? html`
            <${Found}
              model=${model}
              found=${found}
              own=${own}
              kept=${kept}
              onKeep=${onKeep}
              announced=${announced}
            />
          `
        : html`<${Progress} state=${failed.error ? failed : state} what="Looking for objects" />`}
    </article>
  `;
}

async function detect(model, image, signal) {
  const { detections, ...answer } = await api.detect(keyOf(model), image.data, LEAST, signal);
  const objects = detections.map(({ bbox, category, score }, index) => ({
    index,
    bbox,
    category,
    label: model.classes.indexOf(category),
    score,
    note: describe(bbox),
  }));
  return { ...answer, objects, picture: image };
}

const describe = (bbox) => {
  const [x, y, width, height] = bbox.map(Math.round);
  return `${width} by ${height} pixels, ${x} from the left, ${y} from the top`;
};

function Found({ model, found, own, kept, onKeep, announced }) {
  const { image: size, picture, warning } = found;
  const [moved, move] = useState();
  const least = moved ?? kept ?? own;
  const pointing = usePointed(found);
  const objects = found.objects.filter(({ score }) => score >= least);
  const named = objects.find(({ index }) => index === pointing.at);
  return html`
    <div class="bar">
      <${Slider}
        label="Least score"
        value=${least}
        least=${LEAST}
        onMove=${move}
        onKeep=${(value) => {
          move(undefined);
          onKeep(value);
        }}
      />
    </div>
    <${Count} objects=${objects} announced=${announced} />
    ${warning && html`<p><span class="warning">${warning}</span></p>`}
    <div class="found">
      <${Scene}
        model=${model}
        picture=${picture}
        size=${size}
        name=${`${picture.name} with boxes around its objects`}
        over=${html`<${Boxes} size=${size} objects=${objects} pointing=${pointing} />`}
        named=${named}
        place=${named && within(size, named.bbox)}
      />
      <div class="listed"><${Objects} objects=${objects} pointing=${pointing} /></div>
    </div>
  `;
}

// Large boxes below small ones, which can be pointed at too. The list says what they say.
function Boxes({ size, objects, pointing: { at, point, choose } }) {
  const area = ({ bbox }) => bbox[2] * bbox[3];
  return html`
    <svg
      class="boxes"
      viewBox=${`0 0 ${size.width} ${size.height}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      ${[...objects]
        .sort((a, b) => area(b) - area(a))
        .map(({ index, bbox: [x, y, width, height], label }) => {
          const place = { x, y, width, height };
          return html`
            <g
              key=${index}
              class=${at === undefined ? "" : index === at ? "at" : "other"}
              style=${{ color: `rgb(${classColour(label)})` }}
              onPointerEnter=${() => point(index)}
              onPointerLeave=${() => point(undefined)}
              onClick=${() => choose(index)}
            >
              <rect class="halo" ...${place} />
              <rect ...${place} />
            </g>
          `;
        })}
    </svg>
  `;
}
