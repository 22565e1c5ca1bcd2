// The sources of a picture: drop, paste, file dialog, camera, samples.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { sampleUrl } from "./api.js";

// Pictures for each task, in web/samples, at most 20 KB each. Those of a sheet stand side by side
// in one more file, in the same order: one request shows them all.
const SCENES = { suffix: "jpg", names: ["scene-1", "scene-2", "scene-3"], first: "scene-1" };
const SAMPLES = {
  classification: {
    sheet: "all.png",
    suffix: "png",
    names: [
      "airplane",
      "automobile",
      "bird",
      "cat",
      "deer",
      "dog",
      "frog",
      "horse",
      "ship",
      "truck",
    ],
    first: "dog",
  },
  detection: SCENES,
  segmentation: SCENES,
};

export const samplesOf = (task) => SAMPLES[task].names;
export const firstSample = (task) => SAMPLES[task].first;
export const sampleFile = (task, name) => `${name}.${SAMPLES[task].suffix}`;

// Files of which a browser may show another picture than the service reads, or none: the service
// takes the first frame, and turns a picture as its EXIF says, in WebP and in a PNG's text too.
const READ_OTHERWISE = [
  /^(II[*+]\0|MM\0[*+])/, // TIFF
  /^GIF8/,
  /^[^]{4}ftypavis/,
  /^[^]PNG\r\n[^]*(acTL|Raw profile type exif)/,
];
const [WEBP_FLAGS, WEBP_MOVES, WEBP_EXIF] = [20, 0x02, 0x08];

export async function isReadOtherwise(data) {
  const head = new TextDecoder("latin1").decode(await data.slice(0, 65536).arrayBuffer());
  if (!/^RIFF[^]{4}WEBPVP8X/.test(head)) return READ_OTHERWISE.some((one) => one.test(head));
  return Boolean(head.charCodeAt(WEBP_FLAGS) & (WEBP_MOVES | WEBP_EXIF));
}

const imageIn = (transfer) =>
  [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ??
  transfer?.files?.[0];

// Accept drops and pastes anywhere on the page: the browser would open a picture dropped beside
// the box in place of the page.
export function useGiven(onFile) {
  const [over, setOver] = useState(false);
  const [nothing, setNothing] = useState(false);
  useEffect(() => {
    const take = (transfer, name) => {
      const given = imageIn(transfer);
      setNothing(!given);
      if (given) onFile(given, name ?? given.name);
    };
    const listeners = {
      paste: (event) => take(event.clipboardData, "pasted picture"),
      dragover: (event) => {
        event.preventDefault();
        setOver(true);
      },
      dragleave: (event) => event.relatedTarget || setOver(false),
      drop: (event) => {
        event.preventDefault();
        setOver(false);
        take(event.dataTransfer);
      },
    };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener);
    };
  }, [onFile]);
  return [over, nothing];
}

export function Picture({ task, sample, file, given: [over, nothing], onSample, onFile }) {
  const [camera, setCamera] = useState(false);
  const input = useRef();
  const { names, sheet } = SAMPLES[task];

  return html`
    <section class=${`picture ${over ? "over" : ""}`} aria-label="Picture">
      <p class="ways">
        <button type="button" class="main" onClick=${() => input.current.click()}>
          Choose a picture
        </button>
        <button type="button" onClick=${() => setCamera(true)}>Take one</button>
        <span class="hint">or drop it here, or paste it</span>
        <input
          ref=${input}
          class="hidden"
          type="file"
          accept="image/*"
          aria-label="Picture file"
          tabindex="-1"
          onChange=${(event) => {
            const [chosen] = event.target.files;
            if (chosen) onFile(chosen, chosen.name);
            event.target.value = "";
          }}
        />
      </p>
      ${nothing &&
      html`
        <p class="problem" role="alert">
          That was no picture file. A picture of another page has to be saved first.
        </p>
      `}
      <ul class="samples" aria-label="Samples">
        ${names.map(
          (name, place) => html`
            <li>
              <button
                type="button"
                aria-pressed=${!file && sample === name}
                onClick=${() => onSample(name)}
              >
                <img
                  src=${sampleUrl(sheet ?? sampleFile(task, name))}
                  alt=${name}
                  title=${name}
                  width="48"
                  height="48"
                  style=${{ objectPosition: sheet && `${(100 * place) / (names.length - 1)}%` }}
                />
              </button>
            </li>
          `,
        )}
      </ul>
      ${camera && html`<${Camera} onTake=${onFile} onClose=${() => setCamera(false)} />`}
    </section>
  `;
}

function Camera({ onTake, onClose }) {
  const dialog = useRef();
  const video = useRef();
  const [problem, setProblem] = useState();

  useEffect(() => {
    let stream;
    let closed = false;
    dialog.current.showModal();
    const asked =
      navigator.mediaDevices?.getUserMedia({ video: { facingMode: "environment" } }) ??
      Promise.reject(new Error("this page is not on a secure address"));
    asked.then(
      (given) => {
        stream = given;
        if (closed) stream.getTracks().forEach((track) => track.stop());
        else video.current.srcObject = given;
      },
      (error) => setProblem(`There is no camera to use: ${error.message}.`),
    );
    return () => {
      closed = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, []);

  const take = () => {
    const { videoWidth: width, videoHeight: height } = video.current;
    if (!width) return;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(video.current, 0, 0);
    canvas.toBlob((blob) => {
      onTake(blob, "picture from the camera");
      dialog.current.close();
    }, "image/png");
  };

  return html`
    <dialog ref=${dialog} class="camera" aria-label="Camera" onClose=${onClose}>
      ${problem
        ? html`<p class="problem" role="alert">${problem}</p>`
        : html`<video ref=${video} autoplay muted playsinline></video>`}
      <p class="ways">
        ${!problem && html`<button type="button" class="main" onClick=${take}>Take it</button>`}
        <button type="button" onClick=${() => dialog.current.close()}>Close</button>
      </p>
    </dialog>
  `;
}
