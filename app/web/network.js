// The layers from left to right, each with its feature maps, and the arithmetic of each value.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Arithmetic, takenBy, windowOf } from "./arithmetic.js";
import { byLikelihood } from "./classify.js";
import { isConvolution } from "./filters.js";
import {
  Map2D,
  Progress,
  Square,
  breakable,
  largest,
  number,
  percent,
  placeUnder,
} from "./parts.js";
import { NOTHING_CHOSEN, placeIn, useAsked, wholeBelow } from "./state.js";

const AT_FIRST = 12;

export function Network({ manifest, modelKey, image, shown, show }) {
  const layers = manifest.layers ?? [];
  const ask = useMemo(() => askOnce(modelKey, image), [modelKey, image]);
  useEffect(() => ask.stop, [ask]);
  const [looked, setLooked] = useState();
  const [moved, move] = useState();
  const all = useRef();
  const chosenBy = useRef();
  const closing = useRef(false);
  const chosen = layers.find(({ name }) => name === shown.layer);
  const pinned = chosen && {
    layer: chosen.name,
    channel: wholeBelow(chosen.shape[0], shown.channel ?? shown.filter) ?? 0,
    place: placeIn(chosen.shape.slice(1), shown.pixel),
  };
  const at = pinned || looked;
  const pointed = pinned ? undefined : at?.place?.join();
  useEffect(() => move(undefined), [at?.layer, at?.channel, pointed]);
  const look = (spot) => closing.current || setLooked(spot);
  const close = () => {
    closing.current = true; // returning the focus to a map must not open it again
    (chosenBy.current ?? all.current).focus();
    closing.current = false;
    chosenBy.current = undefined;
    setLooked(undefined);
    if (pinned) show({ layer: undefined, ...NOTHING_CHOSEN });
  };
  const layer = layers.find(({ name }) => name === at?.layer);
  if (!layers.length) {
    return html`<p>${modelKey} was exported without layers to look into.</p>`;
  }
  const place = layer && (moved ?? at.place ?? middleOf(layer.shape));
  const column = (record, names) => html`
    <${Column}
      key=${record.name}
      layer=${record}
      names=${names}
      ask=${ask}
      image=${image}
      chosen=${at?.layer === record.name ? at.channel : undefined}
      patch=${layer && patchOf(layer, place)}
      feeds=${layer && takenBy(layer).includes(record.name) ? sourcesOf(layer, at.channel) : undefined}
      onLook=${record.name === PIXELS ? undefined : look}
      onChoose=${(channel, place) => {
        chosenBy.current = document.activeElement;
        move(undefined);
        show({ layer: record.name, ...NOTHING_CHOSEN, channel, pixel: place?.join() });
      }}
    />
  `;
  return html`
    <section
      aria-label="The way through the network"
      onKeyDown=${(event) => event.key === "Escape" && close()}
    >
      <p class="legend">
        <span class="swatch for"></span> values above 0, ${" "}
        <span class="swatch against"></span> below 0, white: 0; the largest value of a layer has the
        full colour. Point at a feature map, or move to it with the Tab key, to see where its
        numbers come from (framed in orange); click it or press Enter to keep it, and Escape to let
        it go.
      </p>
      <div class="network">
        <div
          ref=${all}
          class="layers"
          tabindex="0"
          role="group"
          aria-label="Layers, from left to right"
        >
          <ol class="way">
            ${column(pixelsOf(manifest), ["red", "green", "blue"])}
            ${layers.map((record, place) =>
              column(record, place === layers.length - 1 ? manifest.classes : undefined),
            )}
            ${manifest.temperature !== undefined &&
            html`<${Probabilities} manifest=${manifest} modelKey=${modelKey} image=${image} />`}
          </ol>
        </div>
        ${layer &&
        html`
          <${Arithmetic}
            key=${`${modelKey} ${layer.name} ${at.channel}`}
            manifest=${manifest}
            layer=${layer}
            channel=${at.channel}
            place=${place}
            onPlace=${move}
            takesFocus=${pinned && Boolean(chosenBy.current)}
            onKeep=${pinned && ((place) => show({ pixel: place.join() }, true))}
            ask=${ask}
            image=${image}
            onClose=${close}
          />
        `}
      </div>
    </section>
  `;
}

const PIXELS = "pixels";

const pixelsOf = ({ input }) => ({
  name: PIXELS,
  kind: "the picture, normalised",
  shape: [3, input.shape[1], input.shape[2]],
});

// Fetch each layer's outputs and each filter once; all views share the answers.
function askOnce(modelKey, image) {
  const answers = new Map();
  const stopped = new AbortController();
  const once = (name, asked) => {
    if (!answers.has(name)) {
      const answer = asked();
      answer.catch(() => answers.delete(name));
      answers.set(name, answer);
    }
    return answers.get(name);
  };
  return {
    layer: (name) =>
      once(name, () => api.activations(modelKey, image.data, name, stopped.signal)),
    filter: (name, index) =>
      once(`${name} ${index}`, () => api.readFilter(modelKey, name, index, stopped.signal)),
    stop: () => stopped.abort(),
  };
}

const middleOf = ([, height, width]) =>
  height === undefined ? undefined : [Math.floor(height / 2), Math.floor(width / 2)];

// The square of the input maps that one value is computed from, if it is a square.
function patchOf(layer, place) {
  if (!place) return undefined;
  if (!layer.window) return { top: place[0], left: place[1], side: 1 };
  const { kernel, top, left } = windowOf(layer, ...place);
  return { top, left, side: kernel };
}

// The input channels of one output channel: the same one, all, or those of its group.
function sourcesOf(layer, channel) {
  if (layer.shape.length === 1 && layer.parameters) return () => true;
  if (!isConvolution(layer)) return (index) => index === channel;
  const group = (index, channels) => Math.floor(index / (channels / layer.window.groups));
  return (index, channels) => group(index, channels) === group(channel, layer.shape[0]);
}

function Column({ layer, names, ask, image, chosen, feeds, patch, onLook, onChoose }) {
  const [seen, place] = useSeen();
  const [all, setAll] = useState(false);
  const state = useAsked(
    () => (seen ? () => ask.layer(layer.name) : undefined),
    [seen, ask, image],
  );
  const values = state.answer?.values ?? [];
  const top = useMemo(() => largest(values), [values]);
  const count = layer.shape[0];
  const most = all || count <= AT_FIRST + 4 || chosen >= AT_FIRST ? count : AT_FIRST;
  useEffect(() => {
    if (chosen === undefined) return;
    // The panel takes a part of the width; what is pointed at stays in sight, and moves no further.
    const map = place.current.querySelector("[aria-pressed=true]") ?? place.current;
    map.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosen !== undefined]);
  return html`
    <li ref=${place} class="column" aria-label=${`${layer.name}, ${layer.kind}`}>
      <h2>
        ${breakable(layer.name)}<small>${layer.kind}</small>
        <small>${layer.shape.join(" × ")}</small>
      </h2>
      <${Progress} state=${state} what="Computing" />
      <ul>
        ${values.slice(0, most).map(
          (value, index) => html`
            <li key=${index} class=${feeds?.(index, count) ? "feeds" : ""}>
              <${Value}
                value=${value}
                top=${top}
                name=${names?.[index]}
                index=${index}
                chosen=${chosen === index}
                patch=${feeds?.(index, count) ? patch : undefined}
                onLook=${onLook &&
                ((spot) => onLook({ layer: layer.name, channel: index, place: spot }))}
                onChoose=${(spot) => onChoose(index, spot)}
              />
            </li>
          `,
        )}
      </ul>
      ${count > AT_FIRST + 4 &&
      values.length > 0 &&
      html`
        <button type="button" aria-expanded=${all} onClick=${() => setAll(!all)}>
          ${all ? "fewer" : `all ${count}`}
        </button>
      `}
    </li>
  `;
}

function Value({ value, top, name, index, chosen, patch, onLook, onChoose }) {
  const label = name ?? `channel ${index}`;
  const isMap = Array.isArray(value);
  const inside = isMap
    ? html`
        <span class="framed">
          <${Map2D} rows=${value} top=${top} label=${label} />
          ${patch && html`<${Square} rows=${value} ...${patch} />`}
        </span>
        ${name}
      `
    : html`<span class="name">${name ?? index}</span> <span class="value">${number(value)}</span>`;
  if (!onLook) return html`<span class="still">${inside}</span>`;
  const under = (event) => {
    const map = isMap && event.currentTarget.querySelector("canvas");
    return map ? placeUnder(event, map, value) : undefined;
  };
  return html`
    <button
      type="button"
      class="value-button"
      aria-pressed=${chosen}
      title=${label}
      onPointerMove=${(event) => onLook(under(event))}
      onFocus=${() => onLook()}
      onClick=${(event) => onChoose(event.detail ? under(event) : undefined)}
    >
      ${inside}
    </button>
  `;
}

function Probabilities({ manifest, modelKey, image }) {
  const state = useAsked(
    () => (signal) => api.predict(modelKey, image.data, undefined, signal),
    [modelKey, image],
  );
  const prediction = state.answer?.predictions[0];
  return html`
    <li class="column" aria-label="Probabilities">
      <h2>
        softmax
        <small>
          of the values before ÷ ${manifest.temperature.toFixed(2)}, the
          temperature${manifest.views > 1 &&
          `, averaged over ${manifest.views} views of the picture; the layers show the first`}
        </small>
      </h2>
      <${Progress} state=${state} what="Computing" />
      ${prediction &&
      html`
        <ul>
          ${byLikelihood(prediction.probabilities).map(
            ([label, value]) => html`
              <li><span class="still"><span class="name">${label}</span> ${percent(value)}</span></li>
            `,
          )}
        </ul>
      `}
    </li>
  `;
}

// Whether an element has scrolled into view. Columns out of sight are not computed.
function useSeen() {
  const place = useRef();
  const [seen, setSeen] = useState(false);
  useEffect(() => {
    const observer = new IntersectionObserver(
      ([entry]) => entry.isIntersecting && setSeen(true),
      { rootMargin: "300px" },
    );
    observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  return [seen, place];
}
