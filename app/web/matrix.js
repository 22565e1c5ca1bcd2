// The confusion matrix and the test images behind its cells.

import { html, useRef } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Choice, Progress, percent, useInSight } from "./parts.js";
import { Figures } from "./figures.js";
import { oneOf, useAsked } from "./state.js";

const NORMALISATIONS = [
  ["", "counts"],
  ["true", "percent of the true class"],
  ["pred", "percent of the predicted class"],
  ["all", "percent of all images"],
];
const ORDERS = [
  ["", "as in the data set"],
  ["similarity", "by similarity"],
];

// Of a classifier, images are counted, and pictures of them are kept. Others count boxes or pixels,
// and the last class is background.
const countsImages = (matrix) => matrix.accuracy !== undefined;
const countsBoxes = (matrix) => matrix.score_threshold !== undefined;

export function Matrix({ modelKey, shown, show }) {
  const normalize = oneOf(NORMALISATIONS, shown.normalize);
  const order = oneOf(ORDERS, shown.order);
  const state = useAsked(
    () => (signal) => api.readMatrix(modelKey, normalize || undefined, signal),
    [modelKey, normalize],
  );
  const matrix = state.answer ?? state.before;
  const cell = matrix && countsImages(matrix) && shown.true && shown.predicted;
  return html`
    <section aria-label="Confusion matrix">
      <div class="bar">
        <${Choice}
          label="Cells show"
          value=${normalize}
          options=${NORMALISATIONS}
          onChoose=${(value) => show({ normalize: value })}
        />
        <${Choice}
          label="Classes"
          value=${order}
          options=${ORDERS}
          onChoose=${(value) => show({ order: value })}
        />
      </div>
      <${Progress} state=${state} what="Reading" />
      <div class="split">
        ${matrix && html`<${Table} matrix=${matrix} order=${order} shown=${shown} show=${show} />`}
        ${cell &&
        html`<${Cell} modelKey=${modelKey} truth=${shown.true} predicted=${shown.predicted} />`}
      </div>
      ${matrix && !countsImages(matrix) && html`<${Figures} modelKey=${modelKey} />`}
    </section>
  `;
}

function Table({ matrix, order: wanted, shown, show }) {
  const order = wanted ? similarFirst(matrix) : matrix.labels.map((_, place) => place);
  const values = matrix.normalized ?? matrix.counts;
  const partOfAll = matrix.normalize === "all" || !matrix.normalized;
  const most = partOfAll ? Math.max(...values.flat()) || 1 : 1;
  const itself = useRef();
  const places = order.flatMap((row) => order.map((column) => [row, column]));
  const isChosen = ([row, column]) =>
    matrix.labels[row] === shown.true && matrix.labels[column] === shown.predicted;
  const reached = Math.max(places.findIndex(isChosen), 0);
  const step = (event) => {
    const by = { ArrowUp: -order.length, ArrowDown: order.length, ArrowLeft: -1, ArrowRight: 1 };
    const cells = [...itself.current.querySelectorAll(".cell")];
    const next = cells[cells.indexOf(document.activeElement) + by[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
  };
  const text = (value) => {
    if (!value) return "";
    return matrix.normalized ? (100 * value).toFixed(1) : String(value);
  };
  return html`
    <div class="scroll">
      <p id="said" class="wide">
        ${(countsImages(matrix) ? saidOfImages : countsBoxes(matrix) ? saidOfBoxes : saidOfPixels)(matrix)}
      </p>
      <table ref=${itself} class="matrix" aria-describedby="said" onKeyDown=${step}>
        <thead>
          <tr>
            <td></td>
            ${order.map((column) => html`<th scope="col"><span>${matrix.labels[column]}</span></th>`)}
          </tr>
        </thead>
        <tbody>
          ${order.map(
            (row, line) => html`
              <tr>
                <th scope="row">${matrix.labels[row]}</th>
                ${order.map((column, across) => {
                  const [truth, predicted] = [matrix.labels[row], matrix.labels[column]];
                  const strength = Math.sqrt(values[row][column] / most);
                  const place = line * order.length + across;
                  const shade = `cell shade${Math.round(strength * 8)}`;
                  const content = text(values[row][column]);
                  if (!countsImages(matrix)) return html`<td><span class=${shade}>${content}</span></td>`;
                  return html`
                    <td>
                      <button
                        type="button"
                        class=${shade}
                        aria-pressed=${isChosen([row, column])}
                        tabindex=${place === reached ? 0 : -1}
                        aria-label=${`${truth} predicted as ${predicted}: ${content || 0}${matrix.normalized ? " percent" : " images"}`}
                        onClick=${() => show({ true: truth, predicted })}
                      >
                        ${content}
                      </button>
                    </td>
                  `;
                })}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}

const saidOfImages = ({ accuracy, images }) => html`
  ${percent(accuracy, 2)} of ${images.toLocaleString("en")} test images are classified correctly. Rows
  are true classes, columns predicted ones, and an empty cell is 0; choose a cell to see its pictures
  (the arrow keys lead from one to the next).
`;

const saidOfPixels = ({ images }) => html`
  The pixels of ${images.toLocaleString("en")} test images. Rows are true classes, columns predicted
  ones, and an empty cell is 0.
`;

const saidOfBoxes = ({ objects, images, score_threshold: least }) => html`
  ${objects.toLocaleString("en")} objects in ${images.toLocaleString("en")} test images, against boxes
  with a score of at least ${percent(least)}. Rows are true classes, columns predicted ones, and an
  empty cell is 0. Background: boxes where no object is (row), and objects without a box (column).
`;

// Background is like no class; it stays at the end.
function similarFirst(matrix) {
  if (countsImages(matrix)) return bySimilarity(matrix.counts);
  const last = matrix.labels.length - 1;
  if (last < 2) return [...matrix.labels.keys()];
  return [...bySimilarity(matrix.counts.slice(0, last).map((row) => row.slice(0, last))), last];
}

// Order classes so that often confused ones are neighbours: start from the most confused pair and
// extend the list at either end.
function bySimilarity(counts) {
  const both = (a, b) => counts[a][b] + counts[b][a];
  const left = new Set(counts.keys());
  let best = [0, 1];
  for (const a of left) {
    for (const b of left) if (a < b && both(a, b) > both(...best)) best = [a, b];
  }
  const order = [...best];
  best.forEach((place) => left.delete(place));
  while (left.size) {
    const [first, last] = [order[0], order.at(-1)];
    const next = [...left].reduce((most, place) =>
      Math.max(both(place, first), both(place, last)) > Math.max(both(most, first), both(most, last))
        ? place
        : most,
    );
    order[both(next, first) > both(next, last) ? "unshift" : "push"](next);
    left.delete(next);
  }
  return order;
}

function Cell({ modelKey, truth, predicted }) {
  const state = useAsked(
    () => (signal) => api.readCell(modelKey, truth, predicted, signal),
    [modelKey, truth, predicted],
  );
  const cell = state.answer;
  const place = useInSight([truth, predicted, Boolean(cell)]);
  return html`
    <aside ref=${place} class="detail" aria-label=${`${truth} predicted as ${predicted}`}>
      <h2>${truth} ${truth === predicted ? "recognised" : html`taken for ${predicted}`}</h2>
      <${Progress} state=${state} what="Reading" />
      ${cell &&
      html`
        <p>
          ${cell.count === 0
            ? "No test image."
            : cell.count === 1
              ? "One test image:"
              : `${cell.count} test images; the surest ${cell.images.length} of them:`}
        </p>
        <ul class="pictures">
          ${cell.images.map(
            (image) => html`
              <li>
                <img
                  class="pixels"
                  src=${image.png}
                  alt=${`${truth}, test image ${image.index}`}
                  width="64"
                  height="64"
                />
                <small>${percent(image.confidence, 0)}</small>
              </li>
            `,
          )}
        </ul>
      `}
    </aside>
  `;
}
