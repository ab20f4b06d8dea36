"use strict";
// Draws the charts whose data stands beside them; hides arms on request; fits charts to paper.
(function () {
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var config = { responsive: true, displayModeBar: false };
  plots.forEach(function (plot) {
    var spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
    Plotly.newPlot(plot, spec.data, spec.layout, config);
  });
  document.querySelectorAll(".legend button").forEach(function (button) {
    button.addEventListener("click", function () {
      var shown = button.getAttribute("aria-pressed") !== "true";
      var arm = Number(button.dataset.arm);
      document.querySelectorAll('.legend button[data-arm="' + arm + '"]').forEach(function (each) {
        each.setAttribute("aria-pressed", String(shown));
      });
      plots.forEach(function (plot) {
        var traces = [];
        plot.data.forEach(function (trace, number) {
          if (trace.meta && trace.meta.arm === arm) traces.push(number);
        });
        if (traces.length) Plotly.restyle(plot, { visible: shown }, traces);
      });
    });
  });
  // Paper has another width than the window, and nothing tells the charts so.
  window.addEventListener("beforeprint", function () {
    plots.forEach(function (plot) {
      var wide = plot.parentNode.classList.contains("wide");
      Plotly.relayout(plot, { autosize: false, width: wide ? 660 : 320 });
    });
  });
  window.addEventListener("afterprint", function () {
    plots.forEach(function (plot) {
      Plotly.relayout(plot, { autosize: true, width: null });
    });
  });
})();
