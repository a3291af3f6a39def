/* Figures: a click enlarges; on a phone the panels of a figure stand under each other.
   Without scripts the figure is shown whole. */
(() => {
  "use strict";
  const narrow = window.matchMedia("(max-width: 576px)");

  /* The part [x, y, width, height] of an image, shares of its size, as wide as the page. */
  function crop(image, [x, y, width, height], share) {
    const box = document.createElement("span");
    box.className = "figure-crop";
    box.style.width = `${100 * share}%`;
    box.style.aspectRatio = `${width * image.naturalWidth} / ${height * image.naturalHeight}`;
    const copy = document.createElement("img");
    copy.src = image.src;
    copy.alt = "";
    copy.style.width = `${100 / width}%`;
    copy.style.left = `${(-100 * x) / width}%`;
    copy.style.top = `${(-100 * y) / height}%`;
    box.append(copy);
    return box;
  }

  /* Each panel on a line of its own; one without numbers on its axis has those of the first beside it. */
  function stack(image) {
    const { axis, panels } = JSON.parse(image.dataset.panels);
    const stacked = document.createElement("span");
    stacked.className = "figure-stack";
    stacked.setAttribute("role", "img");
    stacked.setAttribute("aria-label", image.alt);
    for (const { box, shared } of panels) {
      const line = document.createElement("span");
      const strip = shared ? axis : 0;
      const whole = strip + box[2];
      if (strip) line.append(crop(image, [0, box[1], strip, box[3]], strip / whole));
      line.append(crop(image, box, box[2] / whole));
      stacked.append(line);
    }
    return stacked;
  }

  function lay(image) {
    const next = image.nextElementSibling;
    const stacked = next && next.classList.contains("figure-stack") ? next : null;
    if (narrow.matches && !stacked && image.naturalWidth) image.after(stack(image));
    image.hidden = narrow.matches && image.naturalWidth > 0;
    if (stacked) stacked.hidden = !narrow.matches;
  }

  /* One dialog for the page. */
  const dialog = document.createElement("dialog");
  dialog.className = "figure-large";
  dialog.setAttribute("aria-label", "Figure, enlarged");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  const holder = document.createElement("div");
  dialog.append(close, holder);
  dialog.addEventListener("click", (event) => {
    if (event.target !== holder.firstChild) dialog.close();
  });

  function enlarge(image) {
    const copy = document.createElement("img");
    copy.src = image.src;
    copy.alt = image.alt;
    holder.replaceChildren(copy);
    dialog.showModal();
  }

  function prepare(image) {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.setAttribute("aria-haspopup", "dialog");
    image.title = "Enlarge";
    image.addEventListener("click", () => enlarge(image));
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      enlarge(image);
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.body.append(dialog);
    for (const image of document.querySelectorAll(".bd-article figure img, .bd-article .cell_output img")) {
      prepare(image);
      if (!image.dataset.panels) continue;
      if (image.complete && image.naturalWidth) lay(image);
      else image.addEventListener("load", () => lay(image));
      narrow.addEventListener("change", () => lay(image));
    }
  });
})();
