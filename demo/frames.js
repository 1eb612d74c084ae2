/* Gradio counts seconds in every frame, 60 times a second: while a request is going on, and then for ever, since its
   sign of loading is taken away while it counts. That takes a tenth of a core next to a model that wants them all.
   Here what a frame asks of the next one comes from a timer, four times a second; all else comes as it did. */
(() => {
  const request = window.requestAnimationFrame.bind(window);
  const cancel = window.cancelAnimationFrame.bind(window);
  let drawing = false;
  const run = (draw) => {
    drawing = true;
    try { draw(performance.now()); } finally { drawing = false; }
  };
  window.requestAnimationFrame = (draw) => (drawing ? -setTimeout(run, 250, draw) : request(() => run(draw)));
  window.cancelAnimationFrame = (id) => (id < 0 ? clearTimeout(-id) : cancel(id));
})();
