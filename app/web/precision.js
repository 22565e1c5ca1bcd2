// A detector's figures on the test images: precision against recall, and averages by class.

import { html, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { classColour } from "./colours.js";
import { Progress, percent } from "./parts.js";
import { useAsked } from "./state.js";

const css = (index) => ({ color: `rgb(${classColour(index)})` });

export function Precision({ modelKey }) {
  const state = useAsked(() => (signal) => api.readEvaluation(modelKey, signal), [modelKey]);
  const figures = state.answer ?? state.before;
  const [at, point] = useState();
  return html`
    <section class="precision" aria-label="Precision and recall">
      <h2>Precision and recall</h2>
      <${Progress} state=${state} what="Reading" />
      ${figures &&
      html`
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
                      <th scope="row">
                        <span class="swatch" style=${{ background: css(index).color }}></span> ${label}
                      </th>
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
      `}
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
