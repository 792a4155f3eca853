// Charts by Vega-Lite as SVG: text and lines take their colours from the style sheet, so dark mode and print just work.
// `ast` interprets expressions instead of compiling them: the page's policy lets nothing be evaluated.
const charts = window.report.charts;
const small = { labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" };
const base = {
  $schema: "https://vega.github.io/schema/vega-lite/v6.json",
  width: "container",
  background: null,
  autosize: { type: "fit-x", contains: "padding" },
  config: {
    view: { stroke: null },
    axis: { ...small, titlePadding: 8, labelOverlap: true, labelSeparation: 8 },
    axisY: { domain: false, ticks: false },
    legend: { ...small, orient: "bottom", symbolStrokeWidth: 2 },
  },
};
const options = { ast: true, actions: false, renderer: "svg", mode: "vega-lite", tooltip: true };
const make = (tag, text = "", about = {}) => Object.assign(document.createElement(tag), { textContent: text }, about);

async function show(place, chart, chosen) {
  const views = make("div");
  place.querySelector(".views").replaceWith(Object.assign(views, { className: "views" }));
  for (const { title, values, spec } of chosen.views) {
    const view = make("div", "", { className: "view" });
    const plot = make("div");
    view.append(make("h4", title), plot);
    views.append(view);
    if (spec === null) continue;
    try {
      base.config.axis.tickCount = Math.max(3, Math.round(plot.clientWidth / 120));
      base.config.legend.columns = Math.min(5, Math.max(2, Math.floor(plot.clientWidth / 150)));
      base.config.axisY.labelLimit = Math.min(260, plot.clientWidth * 0.42);
      const own = structuredClone({ ...chart.specs[spec], data: { values } });
      await vegaEmbed(plot, { ...base, ...own, description: title }, options);
    } catch (error) {
      plot.textContent = `This chart could not be drawn: ${error.message}`;
    }
  }
  const notes = make("ul", "", { className: "notes" });
  notes.append(...chosen.notes.map((note) => make("li", note)));
  if (chosen.notes.length) views.append(notes);
}

async function start(place) {
  const chart = charts[place.dataset.chart];
  if (!chart.choices.length) {
    place.append(make("p", chart.nothing, { className: "empty" }));
    return;
  }
  const select = make("select");
  select.append(...chart.choices.map((choice, index) => make("option", choice.label, { value: index })));
  select.addEventListener("change", () => show(place, chart, chart.choices[select.value]));
  const picker = make("label", "", { className: "picker" });
  picker.append(chart.choices.length > 1 ? "Show" : "", chart.choices.length > 1 ? select : make("span", chart.choices[0].label));
  place.append(picker, make("div", "", { className: "views" }));
  await show(place, chart, chart.choices[0]);
}

for (const place of document.querySelectorAll("[data-chart]")) {
  await start(place);
  await new Promise((resolve) => setTimeout(resolve)); // the page stays alive between charts
}
document.documentElement.dataset.ready = Math.round(performance.now());
