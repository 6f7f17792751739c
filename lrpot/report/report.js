/* Draws the figures of a report, chooses among its parts, sorts its tables, and shows its worst structures. */
"use strict";
(() => {
  const content = JSON.parse(document.getElementById("report-data").textContent);
  // The buttons are named one by one: what a version of plotly offers beside them may send figures away.
  const settings = (...buttons) => ({ displaylogo: false, displayModeBar: "hover", responsive: true, modeBarButtons: [buttons] });
  const FLAT = settings("toImage", "zoom2d", "pan2d", "resetScale2d");
  const SOLID = settings("toImage", "zoom3d", "pan3d", "orbitRotation", "resetCameraDefault3d");

  // ---- figures

  // Drawing takes a moment for each figure, and one that is hidden has no width: each waits until it is nearly in sight.
  const waiting = new Set(document.querySelectorAll("[data-figure], [data-view]"));
  const sight = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "500px" },
  );
  function draw(place) {
    if (!waiting.delete(place)) return;
    sight.unobserve(place);
    if (place.dataset.view) {
      view(place, content.views[place.dataset.view]);
      return;
    }
    const figure = content.figures[place.dataset.figure];
    Plotly.newPlot(place, figure.data, figure.layout, FLAT);
  }

  function resizeAll() {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      if (plot.offsetParent !== null) Plotly.Plots.resize(plot);
    }
  }

  // Paper is narrower than a window.
  function setPrinting(printing) {
    document.body.classList.toggle("printing", printing);
    if (printing) [...waiting].filter((place) => place.offsetParent !== null).forEach(draw);
    resizeAll();
  }
  window.addEventListener("beforeprint", () => setPrinting(true));
  window.addEventListener("afterprint", () => setPrinting(false));

  // ---- parts

  const tabs = [...document.querySelectorAll("[role=tab]")];
  function showPart(part) {
    for (const tab of tabs) {
      const chosen = tab.dataset.part === part;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = panel.dataset.part !== part;
    resizeAll();
  }
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => showPart(tab.dataset.part));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs[(place + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  });

  // ---- tables

  function sortBy(heading) {
    const table = heading.closest("table");
    const column = [...heading.parentNode.children].indexOf(heading);
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const isNumber = heading.classList.contains("number");
      return { row, key: isNumber ? parseFloat(cell.dataset.key ?? "NaN") : cell.textContent };
    });
    keyed.sort((a, b) => {
      // gaps go to the end either way
      if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
      const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true });
      return falling ? -order : order;
    });
    body.append(...keyed.map((one) => one.row));
  }
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }

  // ---- the 3-D view

  const ERROR_COLOURS = [[0, "#d9e2ec"], [0.5, "#f0a35e"], [1, "#8c1c13"]];
  const LIGHT = { ambient: 0.6, diffuse: 0.75, specular: 0.15, roughness: 0.5, fresnel: 0 };
  const LAMP = { x: 1e4, y: 2e4, z: 3e4 };
  const RADIUS = 0.5; // of an atom, in covalent radii
  const LONGEST_ARROW = 2.5; // A
  const SMOOTHNESS = [[150, 3], [600, 2], [Infinity, 1]]; // up to so many atoms, spheres are cut so often
  // An orthographic view would look more like a drawing, but plotly shades its bodies wrongly there.
  const camera = () => ({ eye: { x: 1.05, y: 0.8, z: 0.5 }, center: { x: 0, y: 0, z: 0 }, up: { x: 0, y: 0, z: 1 } });

  const add = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const length = (a) => Math.hypot(...a);
  const unit = (a) => a.map((value) => value / length(a));

  // Corners and triangles of a sphere: an octahedron whose triangles are cut into four, again and again.
  function sphere(cuts) {
    const corners = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]];
    // every triangle turns the same way seen from outside: that is what light goes by
    let triangles = [];
    for (const x of [0, 1]) for (const y of [2, 3]) for (const z of [4, 5]) {
      triangles.push((x + y + z) % 2 === 0 ? [x, y, z] : [x, z, y]);
    }
    for (let cut = 0; cut < cuts; cut++) {
      const middles = new Map();
      const middle = (a, b) => {
        const name = `${Math.min(a, b)} ${Math.max(a, b)}`;
        if (!middles.has(name)) {
          middles.set(name, corners.length);
          corners.push(unit(add(corners[a], corners[b])));
        }
        return middles.get(name);
      };
      triangles = triangles.flatMap(([a, b, c]) => {
        const [ab, bc, ca] = [middle(a, b), middle(b, c), middle(c, a)];
        return [[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]];
      });
    }
    return { corners, triangles };
  }

  // Many bodies as one mesh of plotly.
  class Mesh {
    constructor() {
      Object.assign(this, { x: [], y: [], z: [], i: [], j: [], k: [] });
    }
    addBody(corners, triangles) {
      const first = this.x.length;
      for (const [x, y, z] of corners) {
        this.x.push(x);
        this.y.push(y);
        this.z.push(z);
      }
      for (const [a, b, c] of triangles) {
        this.i.push(first + a);
        this.j.push(first + b);
        this.k.push(first + c);
      }
    }
    trace(more) {
      return { type: "mesh3d", ...this, lighting: LIGHT, lightposition: LAMP, ...more };
    }
  }

  // A shaft and a head from a point along a vector.
  function addArrow(mesh, start, vector) {
    const sides = 8;
    const along = unit(vector);
    const across = unit(cross(along, Math.abs(along[0]) < 0.7 ? [1, 0, 0] : [0, 1, 0]));
    const third = cross(along, across);
    const head = Math.min(0.45, 0.6 * length(vector));
    const neck = add(start, along, length(vector) - head);
    const rings = [[start, 0.06], [neck, 0.06], [neck, 0.17]];
    const corners = [];
    for (const [centre, radius] of rings) {
      for (let side = 0; side < sides; side++) {
        const angle = (2 * Math.PI * side) / sides;
        corners.push(add(add(centre, across, radius * Math.cos(angle)), third, radius * Math.sin(angle)));
      }
    }
    corners.push(add(start, vector));
    const triangles = [];
    for (let side = 0; side < sides; side++) {
      const next = (side + 1) % sides;
      for (const ring of [0, sides]) {
        triangles.push([ring + side, ring + next, ring + sides + side]);
        triangles.push([ring + next, ring + sides + next, ring + sides + side]);
      }
      triangles.push([2 * sides + side, 2 * sides + next, 3 * sides]);
    }
    mesh.addBody(corners, triangles);
  }

  function cellEdges(cell) {
    const [x, y, z] = [[], [], []];
    const draw = (from, to) => {
      x.push(from[0], to[0], null);
      y.push(from[1], to[1], null);
      z.push(from[2], to[2], null);
    };
    // an edge along each vector from every corner that the other vectors reach
    cell.forEach((vector, n) => {
      let corners = [[0, 0, 0]];
      cell.forEach((other, m) => {
        if (m !== n) corners = corners.flatMap((corner) => [corner, add(corner, other)]);
      });
      for (const corner of corners) draw(corner, add(corner, vector));
    });
    return { type: "scatter3d", mode: "lines", x, y, z, line: { color: "#555", width: 3 }, hoverinfo: "skip" };
  }

  const plain = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

  function traces(found, colour, arrows) {
    const ball = sphere(SMOOTHNESS.find(([most]) => found.symbols.length <= most)[1]);
    const atoms = new Mesh();
    const [colours, sizes, texts] = [[], [], []];
    const errors = found.force_errors;
    const longest = errors ? Math.max(...errors.map(length)) : 0;
    found.positions.forEach((centre, n) => {
      const element = content.elements[found.symbols[n]];
      atoms.addBody(ball.corners.map((corner) => add(centre, corner, RADIUS * element.radius)), ball.triangles);
      const size = errors ? length(errors[n]) : 0;
      let text = `atom ${found.numbers[n]} (${found.symbols[n]})`;
      if (errors) text += `<br>force error ${plain(size)} meV/Å<br>(${errors[n].map(plain).join(", ")})`;
      for (let corner = 0; corner < ball.corners.length; corner++) {
        colours.push(element.colour);
        sizes.push(size);
        texts.push(text);
      }
    });
    const look = { name: "atoms", text: texts, hoverinfo: "text", flatshading: false };
    if (colour === "error" && errors) {
      Object.assign(look, {
        intensity: sizes,
        colorscale: ERROR_COLOURS,
        cmin: 0,
        cmax: longest,
        colorbar: { title: { text: "force error (meV/Å)", side: "right" }, thickness: 14, len: 0.8, outlinewidth: 0 },
      });
    } else {
      look.vertexcolor = colours;
      look.showscale = false;
    }
    const drawn = [atoms.trace(look)];
    if (found.cell.length) drawn.push({ ...cellEdges(found.cell), name: "cell" });
    if (arrows && errors) {
      const mesh = new Mesh();
      found.positions.forEach((centre, n) => {
        const size = length(errors[n]);
        if (!(size > 0.02 * longest)) return; // shorter than it is wide
        const direction = unit(errors[n]);
        const start = add(centre, direction, RADIUS * content.elements[found.symbols[n]].radius);
        addArrow(mesh, start, direction.map((part) => (part * size * LONGEST_ARROW) / longest));
      });
      if (mesh.x.length) drawn.push(mesh.trace({ name: "arrows", color: "#222", hoverinfo: "skip", flatshading: true }));
    }
    return drawn;
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // Asked once: a browser keeps only a few of these contexts.
  function canDraw() {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("webgl2") || canvas.getContext("webgl");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return context !== null;
  }

  let views = 0;
  function view(place, page) {
    const own = `view${views++}`;
    const kinds = [["forces", "force"], ["energy", "energy"]].filter(([kind]) => page[kind].length);
    const kind = element("select", { class: "kind" }, ...kinds.map(([value, text]) => element("option", { value }, text)));
    const pick = element("select", { class: "pick" });
    const radio = (value, text) => {
      const input = element("input", { type: "radio", name: `${own}-colour`, value });
      return [element("label", {}, input, ` ${text}`), input];
    };
    const [byError, errorInput] = radio("error", "force error");
    const [byElement, elementInput] = radio("element", "element");
    const arrows = element("input", { type: "checkbox", class: "arrows" });
    const reset = element("button", { type: "button", class: "reset" }, "Reset view");
    const legend = element("ul", { class: "key" });
    const told = element("p", { class: "told", "aria-live": "polite" });
    const scene = element("div", { class: "scene", role: "img", "aria-label": "Structure in three dimensions" });
    errorInput.checked = arrows.checked = true;
    place.append(
      element(
        "div",
        { class: "controls" },
        element("label", {}, "Worst by ", kind),
        element("label", {}, "Structure ", pick),
        element("fieldset", {}, element("legend", {}, "Colour"), byError, byElement),
        element("label", {}, arrows, " arrows of force errors"),
        reset,
      ),
      told,
      scene,
      legend,
    );

    const drawable = canDraw();
    const rows = [...place.parentNode.querySelectorAll("tr[data-structure]")];
    let shown = null;

    function fillPick() {
      pick.replaceChildren(
        ...page[kind.value].map((number, rank) => {
          const found = page.structures[number];
          const size =
            kind.value === "forces"
              ? `${plain(found.largest_force_error)} meV/Å`
              : `${plain(found.energy_error)} meV/atom`;
          return element("option", { value: number }, `${rank + 1}: ${found.where} (${size})`);
        }),
      );
    }

    function tell(found, colour) {
      const words = [`${found.where}: ${found.formula}, ${found.atoms} atoms`];
      if (found.largest_force_error !== null) {
        words.push(`largest force error ${plain(found.largest_force_error)} meV/Å, RMSE ${plain(found.force_rmse)} meV/Å`);
      }
      if (found.energy_error !== null) words.push(`energy error ${plain(found.energy_error)} meV/atom`);
      if (found.numbers.length < found.atoms) words.push(`the ${found.numbers.length} atoms around the worst are drawn`);
      if (arrows.checked && found.force_errors) words.push("the longest arrow is the largest force error, prediction - label");
      told.textContent = `${words.join("; ")}.`;
      legend.replaceChildren(
        ...[...new Set(found.symbols)].sort().map((symbol) => {
          const dot = element("span", { class: "dot" });
          dot.style.background = content.elements[symbol].colour;
          return element("li", {}, dot, ` ${symbol}`);
        }),
      );
      legend.hidden = colour !== "element";
    }

    function show() {
      const found = page.structures[Number(pick.value)];
      const colour = elementInput.checked || !found.force_errors ? "element" : "error";
      errorInput.disabled = arrows.disabled = !found.force_errors;
      tell(found, colour);
      for (const row of rows) row.classList.toggle("chosen", row.dataset.structure === pick.value);
      if (!drawable) {
        scene.textContent = "This browser cannot draw in three dimensions (WebGL is not available).";
        return;
      }
      const axis = { visible: false, showspikes: false };
      // the view is kept while the same structure is looked at
      const uirevision = pick.value;
      const layout = {
        margin: { l: 0, r: 0, t: 0, b: 0 },
        showlegend: false,
        uirevision,
        font: { family: getComputedStyle(document.body).fontFamily, size: 13 },
        scene: {
          xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "data", camera: camera(), dragmode: "orbit", uirevision,
        },
      };
      Plotly.react(scene, traces(found, colour, arrows.checked), layout, SOLID);
      shown = pick.value;
    }

    kind.addEventListener("change", () => {
      fillPick();
      show();
    });
    for (const control of [pick, errorInput, elementInput, arrows]) control.addEventListener("change", show);
    reset.addEventListener("click", () => {
      if (shown !== null) Plotly.relayout(scene, { "scene.camera": camera() });
    });
    for (const row of rows) {
      row.addEventListener("click", () => {
        const number = Number(row.dataset.structure);
        if (!page[kind.value].includes(number)) kind.value = kinds.find(([other]) => page[other].includes(number))[0];
        fillPick();
        pick.value = String(number);
        show();
        place.scrollIntoView({ block: "nearest" });
      });
    }
    if (!kinds.length) return;
    fillPick();
    show();
  }

  for (const place of waiting) {
    // the room that it will take, and what plotly goes back to when the window changes
    if (place.dataset.figure) place.style.height = `${content.figures[place.dataset.figure].layout.height}px`;
    sight.observe(place);
  }
})();
