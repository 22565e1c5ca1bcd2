// Figures on the test images by class: a detector's precision against recall, a segmenter's overlap.

import { html, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour } from "./colours.js";
import { Progress, percent } from "./parts.js";
import { useAsked } from "./state.js";

const css = (index) => ({ color: `rgb(${classColour(index)})` });

export function Figures({ modelKey }) {
  const state = useAsked(() => (signal) => api.readEvaluation(modelKey, signal), [modelKey]);
  const figures = state.answer ?? state.before;
  if (!figures) return html`<${Progress} state=${state} what="Reading" />`;
  return figures.map === undefined
    ? html`<${Overlap} figures=${figures} />`
    : html`<${Precision} figures=${figures} />`;
}

const Overlap = ({ figures }) => html`
  <section class="by-class" aria-label="Overlap">
    <h2>Overlap</h2>
    <p>
      IoU ${percent(figures.iou)} in ${figures.images.toLocaleString("en")} test images, the mean of the
      classes without background.
      ${figures.instance_f1 !== undefined &&
      ` Objects told apart: F1 ${percent(figures.instance_f1)} at an IoU of 0.5.`}
    </p>
    <table class="figures">
      <thead>
        <tr>
          <th scope="col">class</th>
          <th scope="col">IoU</th>
        </tr>
      </thead>
      <tbody>
        ${figures.per_class.map(
          ({ label, iou }, index) => html`
            <tr>
              <th scope="row"><${Swatch} index=${index} /> ${label}</th>
              <td>${percent(iou)}</td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  </section>
`;

const Swatch = ({ index }) =>
  html`<span class="swatch" style=${{ background: css(index).color }}></span>`;

function Precision({ figures }) {
  const [at, point] = useState();
  return html`
    <section class="by-class" aria-label="Precision and recall">
      <h2>Precision and recall</h2>
      <p>
        mAP ${percent(figures.map)} at overlaps (IoU) of 0.5 to 0.95, ${percent(figures.map50)} at
        0.5, of ${figures.objects.toLocaleString("en")} objects. The curves are those at 0.5.
      </p>
      <div class="beside">
        <${Curves} classes=${figures.per_class} at=${at} />
        <div class="scroll">
          <table class="figures">
            <thead>
              <tr>
                <th scope="col">class</th>
                <th scope="col">AP</th>
                <th scope="col">AP at 0.5</th>
                <th scope="col">objects</th>
              </tr>
            </thead>
            <tbody>
              ${figures.per_class.map(
                ({ label, ap, ap50, objects }, index) => html`
                  <tr
                    class=${at === index ? "at" : ""}
                    onPointerEnter=${() => point(index)}
                    onPointerLeave=${() => point(undefined)}
                  >
                    <th scope="row"><${Swatch} index=${index} /> ${label}</th>
                    <td>${percent(ap)}</td>
                    <td>${percent(ap50)}</td>
                    <td>${objects.toLocaleString("en")}</td>
                  </tr>
                `,
              )}
            </tbody>
          </table>
        </div>
      </div>
    </section>
  `;
}

const TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1];
const SIDE = 300;
const x = (recall) => 56 + SIDE * recall;
const y = (precision) => 14 + SIDE * (1 - precision);

function Curves({ classes, at }) {
  const lines = classes.map(({ precision }) =>
    precision.map((value, step) => `${x(step / (precision.length - 1))},${y(value)}`).join(" "),
  );
  const means = classes.map(({ label, ap50 }) => `${label} ${percent(ap50)}`).join(", ");
  return html`
    <svg
      class="curves"
      viewBox="0 0 372 362"
      role="img"
      aria-label=${`Precision against recall; average precision at 0.5: ${means}`}
    >
      ${TICKS.map(
        (tick) => html`
          <path class="tick" d=${`M${x(tick)} ${y(0)}V${y(1)}M${x(0)} ${y(tick)}H${x(1)}`} />
          <text x=${x(tick)} y=${y(0) + 18} text-anchor="middle">${tick}</text>
          <text x=${x(0) - 8} y=${y(tick) + 4} text-anchor="end">${tick}</text>
        `,
      )}
      <text x=${x(0.5)} y="356" text-anchor="middle">recall</text>
      <text x="12" y=${y(0.5)} text-anchor="middle" transform=${`rotate(-90 12 ${y(0.5)})`}>
        precision
      </text>
      ${lines.map(
        (points, index) => html`
          <g class=${at === undefined ? "" : at === index ? "at" : "other"} style=${css(index)}>
            <polyline class="halo" points=${points} /><polyline points=${points} />
          </g>
        `,
      )}
    </svg>
  `;
}
