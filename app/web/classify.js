// The predictions of models side by side.

import { html } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Choice, Progress, keyOf, measured, percent, useSeen } from "./parts.js";
import { oneOf, useAsked, useUrl } from "./state.js";

// An explanation by regions costs 25 predictions. A model with more multiply-accumulates than this
// explains itself on request only.
const LIGHT = 2e9;

const COVERAGES = [
  ["0.9", "90%"],
  ["0.95", "95%"],
  ["0.99", "99%"],
];

export function Classify({ models, image, shown, show }) {
  const coverage = oneOf(COVERAGES, shown.coverage);
  return html`
    <section aria-label="Predictions">
      <div class="bar">
        <${Choice}
          label="Coverage of the prediction sets"
          value=${coverage}
          options=${COVERAGES}
          onChoose=${(value) => show({ coverage: value })}
        />
        <span class="legend">for pictures like the training images</span>
        <span class="legend">
          <span class="swatch for"></span> speaks for the class, ${" "}
          <span class="swatch against"></span> against it
        </span>
      </div>
      <div class="cards">
        ${models.map(
          (model, place) => html`
            <${Card}
              key=${keyOf(model)}
              model=${model}
              image=${image}
              coverage=${coverage}
              announced=${place === 0}
              why=${model.classes.includes(shown.why) ? shown.why : undefined}
              onWhy=${(label) => show({ why: label })}
            />
          `,
        )}
      </div>
    </section>
  `;
}

function Card({ model, image, coverage, announced, why, onWhy }) {
  const key = keyOf(model);
  const answer = useAsked(
    () => (signal) => predict(key, image, coverage, signal),
    [key, image, coverage],
  );
  const prediction = answer.answer ?? (answer.error ? undefined : answer.before);
  const atOnce = model.macs <= LIGHT;
  const predicted = prediction?.image === image ? prediction.label : undefined;
  const explained = predicted && (why ?? (atOnce ? predicted : undefined));
  const [place, seen] = useSeen(Boolean(predicted));
  const heat = useAsked(
    () =>
      explained && seen
        ? (signal) => api.explainOver(key, image.data, explained, signal)
        : undefined,
    [key, image, explained, seen],
  );
  const overlay = useUrl(heat.answer);
  const state = prediction ? !predicted && "old" : !answer.error && "waiting";
  return html`
    <article ref=${place} class=${`card ${state || ""}`} aria-label=${key}>
      <h2>
        ${key}
        <small>${model.architecture}, ${measured(model)} on the test images</small>
      </h2>
      ${!prediction && html`<${Progress} state=${answer} what="Classifying" />`}
      ${prediction &&
      html`
        <p class="answer" aria-live=${announced ? "polite" : "off"} aria-atomic="true">
          <strong>${prediction.label}</strong> ${percent(prediction.confidence)}
          ${prediction.out_of_distribution && html`
            <span class="warning" title=${`score ${prediction.ood_score}`}>
              unlike anything it was trained on: probability and set promise nothing here
            </span>
          `}
          ${prediction.warning && html` <span class="warning">${prediction.warning}</span>`}
        </p>
        <${Sets} prediction=${prediction} />
        <ul class="bars" aria-label="Probabilities; choose a class to see what speaks for it">
          ${byLikelihood(prediction.probabilities).map(
            ([label, value]) => html`
              <li>
                <button
                  type="button"
                  aria-pressed=${explained === label}
                  onClick=${() => onWhy(why === label ? undefined : label)}
                >
                  <span class="name">${label}</span>
                  <meter aria-hidden="true" min="0" max="1" value=${value}></meter>
                  <span class="value">${percent(value)}</span>
                </button>
              </li>
            `,
          )}
        </ul>
      `}
      ${predicted &&
      !explained &&
      html`
        <button type="button" onClick=${() => onWhy(predicted)}>
          Show what speaks for ${predicted}
        </button>
      `}
      <${Progress} state=${heat} what="Asking about one part after the other" />
      ${overlay &&
      html`
        <figure>
          <img class="overlay" src=${overlay} alt=${`What speaks for ${explained} in the picture`} />
          <figcaption>
            Orange: seen alone, this part looks like “${explained}”, or “${explained}” gets less
            likely when it is covered. Purple: the opposite.
          </figcaption>
        </figure>
      `}
    </article>
  `;
}

// A model without thresholds of prediction sets still predicts.
async function predict(key, image, coverage, signal) {
  const ask = (wanted) => api.predict(key, image.data, wanted, signal);
  const said = await ask(coverage).catch((error) => {
    if (error.type?.endsWith(":nothing-to-see")) return ask(undefined);
    throw error;
  });
  return { ...said.predictions[0], coverage, image };
}

export const byLikelihood = (probabilities) =>
  Object.entries(probabilities).sort(([, a], [, b]) => b - a);

function Sets({ prediction: { coverage, prediction_set: members } }) {
  if (!members) return null;
  return html`
    <p class="set">
      ${percent(coverage, 0)} set:
      ${members.map((label) => html` <span class="member">${label}</span>`)}
    </p>
  `;
}
