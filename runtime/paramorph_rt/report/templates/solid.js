// The 3-D view: unpacks NiiVue and the volumes when it is asked for.
"use strict";
(() => {
  const section = document.getElementById("solid");
  const controls = section.querySelector(".controls");
  const state = section.querySelector(".state");
  const stored = (key) => section.querySelector(`[data-volume=${key}]`);
  let viewer = null;

  async function unpacked(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function library() {
    const script = document.createElement("script");
    script.textContent = await unpacked(document.getElementById("niivue").textContent);
    document.body.append(script);
    return window.niivue;
  }

  const chosen = (name) => section.querySelector(`[name=${name}]:checked`).value;

  async function volume(library, key, colormap, opacity) {
    const source = stored(key);
    return library.NVImage.loadFromBase64({
      base64: source.textContent.trim(), name: source.dataset.name, colormap, opacity, cal_min: 8, cal_max: 255,
    });
  }

  async function load(library) {
    while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
    viewer.addVolume(await volume(library, chosen("volume"), "gray", 1));
    const blend = Number(section.querySelector("[name=blend]").value) / 100;
    viewer.addVolume(await volume(library, "fixed", "copper", blend));
  }

  function arrange() {
    const layout = chosen("layout");
    viewer.setSliceType(layout === "multi" ? viewer.sliceTypeMultiplanar : viewer.sliceTypeRender);
    // The left half away, towards which the view starts; 2 cuts nothing.
    viewer.setClipPlane(layout === "cut" ? [0, 270, 0] : [2, 0, 0]);
  }

  async function open() {
    state.textContent = "Opening …";
    const found = await library();
    section.querySelector(".canvas").hidden = false;
    viewer = new found.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, backColor: [0, 0, 0, 1], clipPlaneColor: [0, 0, 0, 0],
      show3Dcrosshair: true, crosshairColor: [1, 0.69, 0, 0.8], crosshairWidth: 0.5, isOrientCube: true,
      dragAndDropEnabled: false, multiplanarShowRender: found.SHOW_RENDER.ALWAYS, logLevel: "silent",
    });
    await viewer.attachToCanvas(section.querySelector("canvas"));
    await load(found);
    arrange();
    controls.querySelector(".open").hidden = true;
    controls.querySelectorAll("fieldset, label").forEach((control) => { control.hidden = false; });
    section.querySelectorAll("[name=volume]").forEach((input) => input.addEventListener("change", () => load(found)));
    section.querySelectorAll("[name=layout]").forEach((input) => input.addEventListener("change", arrange));
    section.querySelector("[name=blend]").addEventListener("input", (event) => viewer.setOpacity(1, event.target.value / 100));
    state.textContent = "";
  }

  controls.querySelector(".open").addEventListener("click", () => {
    open().catch((error) => {
      section.querySelector(".canvas").hidden = true;
      state.textContent = `The 3-D view needs a browser with WebGL 2: ${error.message}`;
    });
  });
  controls.hidden = false;
})();
