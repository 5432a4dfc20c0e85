// Reports a click on an example prompt, with the example's adapter.
element.addEventListener('click', (event) => {
  const { prompt, adapter } = event.target.closest('.example-prompt')?.dataset ?? {};
  if (prompt) trigger('example', { prompt, adapter });
});
