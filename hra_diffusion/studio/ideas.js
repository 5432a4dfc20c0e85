// Something to begin with: a prompt, and the adapter that it is for.
element.addEventListener('click', (event) => {
  const { prompt, adapter } = event.target.closest('.idea')?.dataset ?? {};
  if (prompt) trigger('idea', { prompt, adapter });
});
