// The filters of a layer, and the patches of test images with each one's strongest activation.

import { html } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Choice, Progress, number, useInSight } from "./parts.js";
import { NOTHING_CHOSEN, useAsked, useUrl, wholeBelow } from "./state.js";

const A_PAGE = 64;
const TILE = 48;
const MOST_PIXELS = 4e6; // of a layer's picture; the service's own limit is higher
const ACROSS = 16;

export function Filters({ manifest, modelKey, shown, show }) {
  const layers = (manifest.layers ?? []).filter(isConvolution);
  if (!layers.length) return html`<p>${modelKey} has no convolutions to look into.</p>`;
  return html`<${Layer} layers=${layers} modelKey=${modelKey} shown=${shown} show=${show} />`;
}

function Layer({ layers, modelKey, shown, show }) {
  const layer = layers.find(({ name }) => name === shown.layer) ?? layers[0];
  const count = layer.shape[0];
  const from = A_PAGE * Math.floor((wholeBelow(count, shown.from) ?? 0) / A_PAGE);
  const chosen = wholeBelow(count, shown.filter);
  const places = [...Array(Math.min(A_PAGE, count - from)).keys()].map((place) => place + from);
  const size = sizeOf(layer);
  const drawn = useAsked(
    () => (signal) => api.filtersPicture(modelKey, layer.name, size.scale, size.across, signal),
    [modelKey, layer.name],
  );
  const picture = useUrl(drawn.answer);
  return html`
    <section aria-label="Filters">
      <div class="bar">
        <${Choice}
          label="Layer"
          value=${layer.name}
          options=${layers.map(({ name, kind }) => [name, `${name}: ${kind}`])}
          onChoose=${(name) => show({ layer: name, ...NOTHING_CHOSEN })}
        />
        ${count > A_PAGE &&
        html`
          <button
            type="button"
            disabled=${from === 0}
            onClick=${() => show({ from: from - A_PAGE || undefined })}
          >
            Earlier
          </button>
          <span>${from} to ${places.at(-1)} of ${count}</span>
          <button
            type="button"
            disabled=${from + A_PAGE >= count}
            onClick=${() => show({ from: from + A_PAGE })}
          >
            Later
          </button>
        `}
      </div>
      <p class="hint">
        ${meaningOf(layer)} ${coloursOf(layer)} Click a filter to see the parts of test images to
        which it responds most.
      </p>
      <${Progress} state=${drawn} what="Drawing" />
      <div class="split">
        <ul class="filters" aria-label=${`Filters of ${layer.name}`}>
          ${places.map(
            (index) => html`
              <li key=${index}>
                <button
                  type="button"
                  aria-label=${`filter ${index}`}
                  aria-pressed=${chosen === index}
                  onClick=${() => show({ layer: layer.name, filter: index })}
                >
                  <span class="tile" style=${cutOut(picture, size, index)}></span>
                </button>
              </li>
            `,
          )}
        </ul>
        ${chosen !== undefined &&
        html`<${Filter} modelKey=${modelKey} layer=${layer} index=${chosen} />`}
      </div>
    </section>
  `;
}

// Scale and columns of the picture of all filters of a layer; gaps are one weight wide.
function sizeOf(layer) {
  const { kernel } = layer.window;
  const across = Math.min(ACROSS, layer.shape[0]);
  const squares = across * Math.ceil(layer.shape[0] / across) * (kernel + 1) ** 2;
  const fits = Math.floor(Math.min(TILE / kernel, Math.sqrt(MOST_PIXELS / squares)));
  return { kernel, across, scale: Math.max(1, fits) };
}

// The style that shows one filter of that picture.
function cutOut(picture, { kernel, scale }, index) {
  const step = scale * (kernel + 1);
  const [row, column] = [Math.floor(index / ACROSS), index % ACROSS];
  return {
    width: `${scale * kernel}px`,
    height: `${scale * kernel}px`,
    backgroundImage: picture && `url("${picture}")`,
    backgroundPosition: `-${scale + column * step}px -${scale + row * step}px`,
  };
}

export const isConvolution = (layer) => layer.window && layer.parameters > 0;

const MEANINGS = {
  Conv2d:
    "Convolution: a small filter slides over the maps before; each place gives the sum of what is under the filter, times its weights.",
  ConvTranspose2d:
    "Transposed convolution: each number before is multiplied by a small filter and laid over several places, so the maps get larger.",
  Whitening:
    "A convolution whose filters are computed from the training images, not learned: they tell neighbouring pixels’ differences apart.",
  BatchNorm2d:
    "Batch normalisation: each map is shifted and scaled, so that all have values of about the same size.",
  ReLU: "Rectified linear unit: what is above 0 stays, everything else becomes 0.",
  SiLU: "Sigmoid linear unit: large values stay, values far below 0 become almost 0, smoothly in between.",
  MaxPool2d: "Pooling: of each small square only the largest value stays, so the maps get smaller.",
  AdaptiveAvgPool2d: "Average pooling: one number remains of each map, its mean.",
  Linear: "Fully connected: each number is the sum of all numbers before, each times a weight of its own.",
  ScaledLinear:
    "Fully connected: each number is the sum of all numbers before, each times a weight of its own, scaled.",
};

// What a layer of this kind does, in a sentence; nothing for other kinds.
export const meaningOf = ({ kind }) => MEANINGS[kind.split(" ")[0]];

const coloursOf = ({ source }) =>
  source === "pixels"
    ? "Colours: its weights for red, green and blue, from its smallest (dark) to its largest (bright)."
    : "Bright: where its weights are large, above or below 0, over all maps before.";

function Filter({ modelKey, layer, index }) {
  const state = useAsked(
    () => (signal) => api.readFilter(modelKey, layer.name, index, signal),
    [modelKey, layer.name, index],
  );
  const filter = state.answer;
  const kept = Boolean(filter?.responses);
  const drawn = useAsked(
    () =>
      kept ? (signal) => api.responsesPicture(modelKey, layer.name, index, signal) : undefined,
    [kept, modelKey, layer.name, index],
  );
  const patches = useUrl(drawn.answer);
  const place = useInSight([index, Boolean(patches)]);
  return html`
    <aside ref=${place} class="detail" aria-label=${`Filter ${index} of ${layer.name}`}>
      <h2>Filter ${index} of ${layer.name}</h2>
      <${Progress} state=${state} what="Reading" />
      ${filter &&
      html`
        <p>
          ${filter.shape.join("×")} weights${filter.bias === undefined
            ? ""
            : `, bias ${number(filter.bias)}`}${layer.receptive_field
            ? `; sees ${layer.receptive_field}×${layer.receptive_field} pixels`
            : ""}.
        </p>
        <${Progress} state=${drawn} what="Drawing" />
        ${!kept && html`<p>No patches are stored for this filter: a large layer stores those of its first filters.</p>`}
        ${patches &&
        html`
              <figure>
                <img
                  class="pixels"
                  src=${patches}
                  alt="The nine parts of test images to which it responds most"
                />
                <figcaption>
                  The parts of nine test images to which it responds most, from
                  ${" "}${number(filter.responses[0].value)} down to
                  ${" "}${number(filter.responses.at(-1).value)}.
                </figcaption>
              </figure>
        `}
      `}
    </aside>
  `;
}
