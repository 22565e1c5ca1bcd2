// The page: a picture, the predictions for it, and views of the models' insides.

import { html, render, useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Classify } from "./classify.js";
import { Choice, Progress } from "./parts.js";
import { Picture, SAMPLES, useGiven } from "./picture.js";
import { NOTHING_CHOSEN, oneOf, useAddress, useAsked } from "./state.js";

const VIEWS = [
  ["", "Classify"],
  ["network", "Through the network"],
  ["filters", "Filters"],
  ["matrix", "Confusion matrix"],
];

function Page() {
  const [shown, show] = useAddress();
  const [file, setFile] = useState();
  const models = useAsked(() => (signal) => api.listModels(signal), []);
  const view = oneOf(VIEWS, shown.view);
  const served = useMemo(() => inOrder(models.answer?.models ?? []), [models.answer]);
  const key = chosenModel(served, shown.model);
  const inside = useAsked(() => INSIDE[view], [view]);
  const manifest = useAsked(
    () => (key && view ? (signal) => api.readManifest(key, signal) : undefined),
    [key, Boolean(view)],
  );
  const sample = SAMPLES.includes(shown.sample) ? shown.sample : "dog";
  const chosen = shown.sample ? undefined : file;
  const [image, fetched] = useImage(chosen, sample);
  const seen = useAsked(
    () => (image.data && key ? (signal) => api.seen(key, image.data, signal) : undefined),
    [image, key],
  );
  const unreadable = seen.error && !seen.error.passing;
  const wantsPicture = view === "" || view === "network";

  const onFile = useCallback(
    (data, name) => {
      setFile({ data, name });
      show({ sample: undefined, why: undefined, view: wantsPicture ? view : "" });
    },
    [show, view],
  );
  useEffect(() => {
    document.title = `${VIEWS.find(([name]) => name === view)[1]} · Convscope`;
  }, [view]);
  const given = useGiven(onFile);
  const onSample = (name) => {
    show({ sample: name, why: undefined });
  };

  return html`
    <header>
      <h1>Convscope</h1>
      <nav aria-label="Views">
        ${VIEWS.map(
          ([name, text]) => html`
            <a
              href=${`?${new URLSearchParams({ ...shown, view: name })}`}
              aria-current=${view === name ? "page" : undefined}
              onClick=${(event) => {
                if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                event.preventDefault();
                show({ view: name });
              }}
              >${text}</a
            >
          `,
        )}
        <a href="docs">API</a>
      </nav>
    </header>
    <main>
      ${wantsPicture &&
      html`
        <div class="top">
          <${Picture}
            sample=${sample}
            file=${chosen}
            given=${given}
            onSample=${onSample}
            onFile=${onFile}
          />
          <${Seen} image=${image} fetched=${fetched} seen=${seen} />
        </div>
      `}
      <${Progress} state=${models} what="Asking which models there are" />
      ${view &&
      key &&
      html`
        <div class="bar">
          <${Choice}
            label="Model"
            value=${key}
            options=${served.map(({ name, version }) => [`${name}/${version}`, `${name}/${version}`])}
            onChoose=${(value) =>
              show({ model: value, layer: undefined, ...NOTHING_CHOSEN })}
          />
        </div>
      `}
      <${Progress} state=${view ? inside : {}} what="Fetching the view" />
      <${Progress} state=${view ? manifest : {}} what="Reading the model" />
      ${view === "" &&
      served.length > 0 &&
      image.data &&
      !unreadable &&
      html`<${Classify} models=${served} image=${image} shown=${shown} show=${show} />`}
      ${view &&
      manifest.answer &&
      inside.answer &&
      html`<${inside.answer}
        manifest=${manifest.answer}
        modelKey=${key}
        image=${unreadable ? NO_IMAGE : image}
        shown=${shown}
        show=${show}
      />`}
    </main>
  `;
}

// Fetched when they are asked for.
const INSIDE = {
  network: async () => {
    const { Network } = await import("./network.js");
    return (given) => given.image.data && html`<${Network} ...${given} />`;
  },
  filters: async () => (await import("./filters.js")).Filters,
  matrix: async () => (await import("./matrix.js")).Matrix,
};

// The default model first, then the fully connected one, which it is compared with.
const inOrder = (models) =>
  models.filter(({ task }) => task === "classification").sort(
    (a, b) => b.default - a.default || (b.architecture === "fc") - (a.architecture === "fc"),
  );

function chosenModel(models, wanted) {
  const keys = models.map(({ name, version }) => `${name}/${version}`);
  return keys.includes(wanted) ? wanted : keys[0];
}

const NO_IMAGE = {};

// The picture (its bytes as sent, its name, a URL to show it from) and the state of the request
// that fetches it.
function useImage(file, sample) {
  const fetched = useAsked(
    () => async (signal) => {
      const given = file ?? { data: await api.readSample(sample, signal), name: sample };
      return { ...given, url: URL.createObjectURL(given.data) };
    },
    [file, sample],
  );
  return [fetched.answer ?? (fetched.error ? NO_IMAGE : (fetched.before ?? NO_IMAGE)), fetched];
}

function Seen({ image, fetched, seen }) {
  return html`
    <section class="seen" aria-label="The picture and what the network sees">
      <${Progress} state=${fetched} what="Fetching the picture" />
      ${image.url &&
      html`
        <figure>
          ${!seen.error && html`<img src=${image.url} alt=${image.name} />`}
          <figcaption>${image.name}</figcaption>
        </figure>
      `}
      <${Progress} state=${seen} what="Reading the picture" />
      ${seen.answer &&
      html`
        <figure>
          <img class="pixels" src=${seen.answer} alt="The picture in the network's pixels" />
          <figcaption>what the network sees</figcaption>
        </figure>
      `}
    </section>
  `;
}

render(html`<${Page} />`, document.getElementById("page"));
