// What page.js uses of OpenLayers; `make tmtool/pictures/page/ol.js` bundles it.
export { default as ImageLayer } from "ol/layer/Image.js";
export { default as Map } from "ol/Map.js";
export { default as Projection } from "ol/proj/Projection.js";
export { getRenderPixel } from "ol/render.js";
export { default as Static } from "ol/source/ImageStatic.js";
export { default as View } from "ol/View.js";
