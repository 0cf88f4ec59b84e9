// The page's map: a swipe between two layers of a scene, and the values under the pointer. No request is made.
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const scenes = JSON.parse(by("facts").textContent);
  const held = new Map(); // data of layers, by key: each is decoded when it is first shown
  let scene, left, right, swiped = 50, last = null, rest;

  // ---- data ----

  const TYPES = {
    uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array, int32: Int32Array,
    float32: Float32Array, float64: Float64Array, int64: BigInt64Array, uint64: BigUint64Array,
  };
  const WORDS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array };

  function dataOf(layer) {
    if (!held.has(layer.key)) {
      const { picture, values } = JSON.parse(by(`data-${layer.key}`).textContent);
      const data = { picture, values: null, valid: null };
      data.ready = unpacked(values, layer).then((found) => Object.assign(data, found));
      held.set(layer.key, data);
    }
    return held.get(layer.key);
  }

  // The inverse of `packed` in _packed.py.
  async function unpacked(text, layer) {
    const deflated = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const Type = TYPES[layer.type], size = Type.BYTES_PER_ELEMENT, [rows, cols] = layer.shape;
    const count = layer.bands.length * rows * cols, joined = new Uint8Array(count * size);
    for (let k = 0; k < size; k++) for (let i = 0; i < count; i++) joined[i * size + k] = bytes[k * count + i];
    const words = new WORDS[size](joined.buffer);
    for (let i = 0; i < count; i++) if (i % cols) words[i] += words[i - 1];
    return { values: new Type(joined.buffer), valid: bytes.subarray(count * size) };
  }

  // ---- values ----

  // The pixel of a layer at a place in px of the scene's grid, x to the right and y down, or null beside it.
  function pixelAt(layer, x, y) {
    const [x0, y0, x1, y1] = layer.box, [rows, cols] = layer.shape, [row0, col0, height, width] = layer.part;
    const col = Math.floor(((x - x0) / (x1 - x0)) * cols), row = Math.floor(((y - y0) / (y1 - y0)) * rows);
    if (row < 0 || col < 0 || row >= rows || col >= cols) return null;
    return {
      cell: row * cols + col, // of which the value is that of the pixel in its middle
      row: row0 + Math.floor(((2 * row + 1) * height) / (2 * rows)),
      col: col0 + Math.floor(((2 * col + 1) * width) / (2 * cols)),
    };
  }

  function numberText(value, type) {
    if (type !== "float32") return String(value);
    for (let digits = 6; digits < 9; digits++) {
      const short = Number(value.toPrecision(digits));
      if (Math.fround(short) === value) return String(short);
    }
    return String(Number(value.toPrecision(9)));
  }

  function placeText(layer, { row, col }) {
    const [a, b, c, d, e, f] = layer.transform, digits = scene.degrees ? 6 : 2;
    if (layer.warped) return layer.warped;
    const where = `row ${row}, column ${col}`;
    if (!scene.crs) return where;
    const x = a * (col + 0.5) + b * (row + 0.5) + c, y = d * (col + 0.5) + e * (row + 0.5) + f;
    return `${where}; centre ${x.toFixed(digits)}, ${y.toFixed(digits)} (${scene.crs})`;
  }

  // What a layer has at a place: its pixel in words, and [band, value] pairs.
  function reading(layer, x, y) {
    const pixel = pixelAt(layer, x, y), data = dataOf(layer);
    if (!pixel) return { where: "outside", values: [] };
    if (!data.values) return { where: "being unpacked", values: [] };
    const where = placeText(layer, pixel);
    if (!data.valid[pixel.cell]) return { where, values: [["", "no data"]] };
    const size = layer.shape[0] * layer.shape[1];
    const values = layer.bands.map((band, i) => {
      const value = data.values[i * size + pixel.cell], name = layer.bands.length === 1 ? layer.names[value] : undefined;
      return [band, numberText(value, layer.type) + (name === undefined ? (layer.unit ? ` ${layer.unit}` : "") : ` ${name}`)];
    });
    return { where, values };
  }

  function element(tag, text, name) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function shownReading(layer, { where, values }) {
    const part = element("section", "");
    part.append(element("h3", layer.name, "name"), element("p", where, "note"));
    const list = element("dl", "", values.length > 4 ? "many" : "");
    for (const [band, value] of values) {
      const pair = element("div", "");
      pair.append(element("dt", band), element("dd", value));
      list.append(pair);
    }
    part.append(list);
    if (values.length > 1 && layer.count > values.length) part.append(element("p", `the first ${values.length} of ${layer.count} bands`, "note"));
    return part;
  }

  function read(coordinate) {
    last = coordinate;
    const x = coordinate[0], y = -coordinate[1], layers = left === right ? [left] : [left, right];
    const found = layers.map((layer) => [layer, reading(layer, x, y)]);
    by("readings").replaceChildren(...found.map(([layer, said]) => shownReading(layer, said)));
    clearTimeout(rest); // screen readers are told once the pointer rests
    rest = setTimeout(() => {
      const words = ([layer, said]) => `${layer.name}, ${said.where}: ${said.values.slice(0, 6).map((pair) => pair.join(" ")).join(", ")}`;
      by("spoken").textContent = found.map(words).join(". ");
    }, 400);
  }

  // ---- map ----

  const smooth = (layer, event) => { // pixels have edges where they are enlarged
    const [x0, , x1] = layer.box;
    event.context.imageSmoothingEnabled = event.frameState.viewState.resolution > (x1 - x0) / layer.shape[1];
  };

  function imageOf(layer, projection) {
    const [x0, y0, x1, y1] = layer.box;
    const source = new ol.Static({ url: dataOf(layer).picture, imageExtent: [x0, -y1, x1, -y0], projection, interpolate: false });
    const image = new ol.ImageLayer({ source });
    image.on("prerender", (event) => smooth(layer, event));
    return image;
  }

  function clipped(image) {
    image.on("prerender", (event) => {
      const [width, height] = map.getSize(), x = (width * swiped) / 100, context = event.context;
      const corners = [[x, 0], [width, 0], [width, height], [x, height]].map((corner) => ol.getRenderPixel(event, corner));
      context.save();
      context.beginPath();
      corners.forEach(([a, b], i) => (i ? context.lineTo(a, b) : context.moveTo(a, b)));
      context.closePath();
      context.clip();
    });
    image.on("postrender", (event) => event.context.restore());
    image.setOpacity(by("opacity").value / 100);
    return image;
  }

  const map = new ol.Map({ target: by("map"), controls: [], layers: [] });
  let upper = null;

  function showLayers() {
    const projection = map.getView().getProjection();
    [left, right] = ["left", "right"].map((id) => scene.layers[by(id).value]);
    upper = clipped(imageOf(right, projection));
    map.setLayers([imageOf(left, projection), upper]);
    for (const part of document.querySelectorAll(".legend, .about")) {
      part.hidden = ![left, right].some((layer) => part.id.endsWith(`nd-${layer.key}`) || part.id.endsWith(`ut-${layer.key}`));
    }
    for (const layer of [left, right]) dataOf(layer).ready.then(() => last && read(last));
    setSwipe(swiped);
  }

  function fit() {
    const [x0, y0, x1, y1] = scene.box;
    map.getView().fit([x0, -y1, x1, -y0], { padding: [4, 4, 4, 4] });
  }

  function showScene(number) {
    scene = scenes[number];
    last = null;
    by("readings").replaceChildren(element("p", "Point at the map, or move it with the arrow keys, to read values.", "note"));
    for (const button of document.querySelectorAll("button.scene")) button.setAttribute("aria-current", button.dataset.scene === String(number));
    for (const id of ["left", "right"]) by(id).replaceChildren(...scene.layers.map((layer, i) => new Option(layer.name, i)));
    const first = scene.layers.findIndex((layer) => !layer.input); // products come after inputs
    by("left").value = 0;
    by("right").value = first || Math.min(1, scene.layers.length - 1);
    const [x0, y0, x1, y1] = scene.box, extent = [x0, -y1, x1, -y0];
    const projection = new ol.Projection({ code: `scene-${number}`, units: "pixels", extent });
    map.setView(new ol.View({ projection, center: [(x0 + x1) / 2, -(y0 + y1) / 2], resolution: 1, minResolution: 0.02, showFullExtent: true }));
    showLayers();
    map.updateSize();
    fit();
  }

  // ---- swipe ----

  function setSwipe(percent) {
    swiped = Math.min(100, Math.max(0, percent));
    const handle = by("handle"), round = Math.round(swiped);
    handle.style.left = `${swiped}%`;
    handle.setAttribute("aria-valuenow", round);
    handle.setAttribute("aria-valuetext", `${round} %: ${left.name} on the left, ${right.name} on the right`);
    map.render();
  }

  const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
  by("handle").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    setSwipe(swiped + step * (event.shiftKey && Math.abs(step) === 1 ? 10 : 1));
  });
  by("handle").addEventListener("pointerdown", (event) => {
    event.currentTarget.setPointerCapture(event.pointerId);
    event.currentTarget.focus();
    event.preventDefault();
  });
  by("handle").addEventListener("pointermove", (event) => {
    if (!event.currentTarget.hasPointerCapture(event.pointerId)) return pointAt(map.getEventCoordinate(event));
    const box = by("stage").getBoundingClientRect();
    setSwipe((100 * (event.clientX - box.left)) / box.width);
  });

  // ---- controls ----

  let byKeys = false;
  const cross = (on) => by("cross").toggleAttribute("hidden", !on);
  function pointAt(coordinate) {
    byKeys = false;
    cross(false);
    read(coordinate);
  }
  map.on(["pointermove", "click"], (event) => event.dragging || pointAt(event.coordinate));
  by("map").addEventListener("keydown", () => { byKeys = true; cross(true); });
  map.on("moveend", () => { if (byKeys) read(map.getView().getCenter()); });
  by("left").addEventListener("change", showLayers);
  by("right").addEventListener("change", showLayers);
  by("opacity").addEventListener("input", () => upper.setOpacity(by("opacity").value / 100));
  by("nearer").addEventListener("click", () => map.getView().adjustZoom(1));
  by("farther").addEventListener("click", () => map.getView().adjustZoom(-1));
  by("whole").addEventListener("click", fit);
  by("scenes").addEventListener("click", (event) => {
    const button = event.target.closest("button.scene");
    if (button) showScene(Number(button.dataset.scene));
  });

  const first = scenes.findIndex((each) => each.layers.length);
  by("viewer").hidden = first < 0;
  by("nothing").hidden = first >= 0;
  if (first >= 0) showScene(first);
})();
