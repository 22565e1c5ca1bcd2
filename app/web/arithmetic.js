// The arithmetic behind one value of a layer: input patch, weights, sum.

import { html, useEffect, useMemo, useRef } from "./vendor/htm-preact-3.1.1.js";
import { inkOn, signedColour } from "./colours.js";
import { isConvolution, meaningOf } from "./filters.js";
import { Map2D, Progress, Square, breakable, largest, number, placeUnder } from "./parts.js";
import { useAsked } from "./state.js";

const SHOWN_CHANNELS = 3;

// The input layers of a layer. Most have one; a residual sum has several.
export const takenBy = (layer) => layer.addends ?? (layer.source ? [layer.source] : []);

export function Arithmetic({
  manifest,
  layer,
  channel,
  place,
  takesFocus,
  ask,
  image,
  onPlace,
  onKeep,
  onClose,
}) {
  const state = useAsked(
    () => () =>
      Promise.all([
        ask.layer(layer.name),
        Promise.all(takenBy(layer).map(ask.layer)),
        isConvolution(layer) ? ask.filter(layer.name, channel) : undefined,
      ]),
    [ask, layer, channel, image],
  );
  const [output, taken = [], filter] = state.answer ?? [];
  const input = useMemo(() => added(taken.map(({ values }) => values)), [state.answer]);
  const map = output?.values[channel];
  const names = manifest.layers.at(-1) === layer ? manifest.classes : undefined;
  return html`
    <section class="detail panel" aria-label=${`Channel ${channel} of ${layer.name}`}>
      <h2>
        ${breakable(layer.name)}, ${names?.[channel] ?? `channel ${channel}`} <small>${layer.kind}</small>
      </h2>
      <button type="button" class="close" onClick=${onClose}>Close</button>
      <p class="hint">${meaningOf(layer)}</p>
      <${Progress} state=${state} what="Computing" />
      ${Array.isArray(map) &&
      html`<${Cursor}
        map=${map}
        takesFocus=${takesFocus}
        place=${place}
        onPlace=${onPlace}
        onKeep=${onKeep}
        made=${(row, column) => made({ layer, channel, taken, input, filter, row, column, map })}
      />`}
      ${typeof map === "number" && html`<${Unit} layer=${layer} input=${input} value=${map} />`}
    </section>
  `;
}

// The elementwise sum of the outputs of one or more layers.
function added(all) {
  if (all.length < 2) return all[0];
  const [first, ...others] = all;
  return Array.isArray(first)
    ? first.map((part, place) => added([part, ...others.map((other) => other[place])]))
    : all.reduce((sum, value) => sum + value);
}

function Unit({ layer, input, value }) {
  const inputs = input?.flat(Infinity).length;
  const said = {
    Linear: `the sum of ${inputs} inputs, each times a weight, and a bias`,
    ScaledLinear: `the sum of ${inputs} inputs, each times a weight, scaled`,
    ReLU: "max(0, the value before)",
  }[layer.kind.split(" ")[0]];
  return html`<p class="formula">${said && `${said} = `}<strong>${number(value)}</strong></p>`;
}

function Cursor({ map, place: [row, column], takesFocus, onPlace, onKeep, made }) {
  const itself = useRef();
  useEffect(() => {
    if (takesFocus) itself.current.focus();
  }, [takesFocus]);
  const [height, width] = [map.length, map[0].length];
  const reached = useRef();
  reached.current = [row, column]; // a key can arrive before the next render
  const go = (place) => {
    reached.current = place;
    onPlace(place);
  };
  const move = (event) => go(placeUnder(event, event.currentTarget, map));
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = (event) => {
    const by = steps[event.key];
    if (!by) return;
    event.preventDefault();
    const [down, right] = reached.current;
    go([
      Math.max(0, Math.min(height - 1, down + by[0])),
      Math.max(0, Math.min(width - 1, right + by[1])),
    ]);
  };
  return html`
    <div class="arithmetic">
      <div
        ref=${itself}
        class="cursor"
        tabindex="0"
        role="application"
        aria-label=${`Feature map, ${height} by ${width}; the arrow keys move over it`}
        onPointerMove=${move}
        onPointerDown=${move}
        onKeyDown=${step}
        onPointerUp=${() => onKeep?.(reached.current)}
        onKeyUp=${(event) => steps[event.key] && onKeep?.(reached.current)}
      >
        <${Map2D} rows=${map} top=${largest(map)} label="feature map" />
        <${Square} rows=${map} top=${row} left=${column} />
      </div>
      <div>
        <p aria-live="polite">Row ${row}, column ${column}: ${number(map[row][column])}</p>
        ${made(row, column)}
      </div>
    </div>
  `;
}

function made({ layer, channel, taken, input, filter, row, column, map }) {
  const result = html`<strong>${number(map[row][column])}</strong>`;
  if (!input) return html`<p class="formula">Several layers are joined here: ${result}</p>`;
  if (filter) return convolved({ layer, channel, input, filter, row, column, result });
  if (layer.window) return pooled({ layer, input: input[channel], row, column, result });
  if (layer.kind.startsWith("AdaptiveAvgPool")) return averaged({ input: input[channel], result });
  const before = input[channel]?.[row]?.[column];
  if (before === undefined) return html`<p class="formula">${result}</p>`;
  const terms = taken.map(({ values }) => bracket(values[channel][row][column])).join(" + ");
  const formulas = {
    ReLU: () => html`max(0, ${terms})`,
    SiLU: () =>
      html`${taken.length > 1 ? `(${terms})` : terms} · sigmoid(${terms})`,
    BatchNorm2d: () => normalised(before, input[channel], map),
  };
  return html`<p class="formula">${formulas[layer.kind]?.() ?? terms} = ${result}</p>`;
}

// Normalisation is affine within a channel, so its scale and shift follow from two values.
function normalised(before, plane, map) {
  const [from, to] = [plane.flat(), map.flat()];
  const [low, high] = [Math.min(...from), Math.max(...from)].map((value) => from.indexOf(value));
  if (from[low] === from[high]) return html`γ (${number(before)} − μ) / σ + β`;
  const scale = (to[high] - to[low]) / (from[high] - from[low]);
  const shift = to[high] - scale * from[high];
  return html`γ/σ · ${number(before)} + (β − γμ/σ) = ${number(scale)} · ${bracket(before)} +
    ${" "}${bracket(shift)}`;
}

export function windowOf(layer, row, column) {
  const { kernel, stride, padding } = layer.window;
  return { kernel, top: row * stride - padding, left: column * stride - padding };
}

const at = (plane, row, column) => plane[row]?.[column];

function pooled({ layer, input, row, column, result }) {
  const { kernel, top, left } = windowOf(layer, row, column);
  const rows = grid(kernel, (y, x) => at(input, top + y, left + x));
  const name = layer.kind.startsWith("Max") ? "the largest of" : "the mean of";
  return html`
    <p>${name}</p>
    <${Numbers} rows=${rows} />
    <p class="formula">= ${result}</p>
  `;
}

function averaged({ input, result }) {
  const [height, width] = [input.length, input[0].length];
  return html`
    <p class="formula">the mean of the ${height} × ${width} values of the map before = ${result}</p>
  `;
}

function convolved({ layer, channel, input, filter, row, column, result }) {
  const names = takenBy(layer)[0] === "pixels" ? ["red", "green", "blue"] : undefined;
  const { kernel, top, left } = windowOf(layer, row, column);
  const weights = filter.weights;
  const group = Math.floor(channel / (layer.shape[0] / layer.window.groups));
  const sums = weights.map((plane, place) => {
    const seen = input[group * weights.length + place];
    const patch = grid(kernel, (y, x) => at(seen, top + y, left + x) ?? 0);
    let sum = 0;
    patch.forEach((line, y) => line.forEach((number_, x) => (sum += number_ * plane[y][x])));
    return { place, patch, plane, sum };
  });
  const total = sums.reduce((all, { sum }) => all + sum, 0);
  const strongest = [...sums]
    .sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum))
    .slice(0, SHOWN_CHANNELS);
  const others = total - strongest.reduce((all, { sum }) => all + sum, 0);
  const rest = sums.length - strongest.length;
  return html`
    <p>Each number under the filter, times its weight, over all input channels:</p>
    ${strongest.map(
      ({ place, patch, plane, sum }) => html`
        <div class="product">
          <span>${names?.[place] ?? `channel ${place}`}</span>
          <${Numbers} rows=${patch} /> <span class="sign">⊙</span> <${Numbers} rows=${plane} />
          <span class="sign">= ${number(sum)}</span>
        </div>
      `,
    )}
    <p class="formula">
      ${strongest.map(({ sum }, index) => `${index ? " + " : ""}${bracket(sum)}`)}
      ${rest > 0 ? ` + ${bracket(others)} of the other ${rest}` : ""}
      ${filter.bias === undefined ? "" : ` + bias ${bracket(filter.bias)}`} = ${result}
    </p>
  `;
}

const bracket = (value) => (value < 0 ? `(${number(value)})` : number(value));

const grid = (side, value) =>
  [...Array(side).keys()].map((y) => [...Array(side).keys()].map((x) => value(y, x)));

function Numbers({ rows }) {
  const top = largest(rows.map((row) => row.map((value) => value ?? 0)));
  const paint = (value = 0) => {
    const colour = signedColour(value / top);
    return { background: `rgb(${colour})`, color: inkOn(colour) };
  };
  return html`
    <table class="numbers">
      <tbody>
        ${rows.map(
          (row) => html`
            <tr>
              ${row.map(
                (value) => html`<td style=${paint(value)}>${value?.toFixed(2) ?? "outside"}</td>`,
              )}
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}
