// Decoded epochs: pictures, confidence in words, the nearest known pictures.

import { $, element } from "./page.js";
import { plots } from "./plots.js";

const list = (names) => names.length > 12 ? `${names.slice(0, 12).join(", ")} and ${names.length - 12} more` : names.join(", ");
const picture = (base64) => `data:image/png;base64,${base64}`;

export function showAnswer(answer) {
  $("plots").replaceChildren(...answer.preview.map((signal) => plots(signal, answer.report.interpolated)));
  $("signals").hidden = answer.preview.length === 0;
  $("epochs").replaceChildren(...answer.epochs.map((epoch) => epochView(epoch, answer.pictures)));
  const said = [];
  if (answer.report.interpolated.length) said.push(`Interpolated sensors: ${list(answer.report.interpolated)}.`);
  if (answer.report.dropped.length) said.push(`Dropped channels: ${list(answer.report.dropped)}.`);
  said.push(...answer.report.warnings, ...answer.report.flags.map((flag) => `${flag.detail}.`));
  if (answer.report.calibration_words) said.push(answer.report.calibration_words);
  $("report").textContent = said.join(" ");
  $("provenance").textContent = `Modalities ${answer.report.modalities.join(" + ")}; noise floor of the similarity ${answer.noise_floor.toFixed(2)}; seed ${answer.seed}; ${answer.num_inference_steps} steps; bundle ${answer.bundle_id}; ${(answer.timings.total_ms / 1000).toFixed(2)} s.`;
  $("result").hidden = false;
  $("decoded").focus({ preventScroll: true });
}

export function epochView(epoch, pictures, title = "") {
  const kindOfPicture = pictures === "generated" ? "generated estimate" : "gallery picture, retrieved";
  const kind = epoch.confidence >= 0.95 ? "strong" : epoch.confidence >= 0.8 ? "weak" : "none";
  const named = title || ((epoch.stimulus ? `Epoch ${epoch.index + 1}, stimulus ${epoch.stimulus}` : `Epoch ${epoch.index + 1}`) +
    (epoch.n_averaged > 1 ? `, ${epoch.n_averaged} presentations averaged` : ""));
  const near = epoch.neighbours.map((neighbour) => {
    const figure = element("figure");
    if (neighbour.thumbnail) figure.append(element("img", { src: picture(neighbour.thumbnail), alt: neighbour.caption || neighbour.name }));
    figure.append(element("figcaption", { textContent: `${neighbour.caption || neighbour.name} (similarity ${neighbour.similarity.toFixed(2)})` }));
    return figure;
  });
  const bar = element("div", { className: `bar ${kind}` }, element("i"));
  bar.firstChild.style.width = `${Math.round(100 * epoch.confidence)}%`;
  return element("div", { className: "epoch" },
    element("div", { className: "pictures" }, ...epoch.images.map((image, index) => epoch.safety[index] === "refused"
      ? element("p", { className: "soft", textContent: `Picture ${index + 1} was withheld by the safety check.` })
      : element("img", { src: picture(image), alt: `${kindOfPicture} ${index + 1} of ${named}`, title: kindOfPicture }))),
    element("div", {},
      element("strong", { textContent: named }),
      element("p", { className: `confidence ${kind}`, textContent: `Confidence ${epoch.confidence.toFixed(2)}: ${epoch.confidence_words}.` }), bar,
      element("p", { className: "soft", textContent: "Nearest known pictures:" }),
      element("div", { className: "near" }, ...near)));
}
