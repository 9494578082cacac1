"use strict";
for (const part of document.querySelectorAll("[data-part]")) {
  const mark = (on) => {
    for (const same of document.querySelectorAll(`[data-part="${part.dataset.part}"]`)) same.classList.toggle("on", on);
  };
  part.addEventListener("mouseenter", () => mark(true));
  part.addEventListener("mouseleave", () => mark(false));
  part.addEventListener("click", () => {
    const other = part.tagName === "rect" ? ".part" : "rect";
    document.querySelector(`${other}[data-part="${part.dataset.part}"]`)?.scrollIntoView({ block: "center", behavior: "smooth" });
  });
}
for (const choice of document.querySelectorAll("input[name=view]")) {
  choice.addEventListener("change", () => { document.body.dataset.view = choice.value; });
}
