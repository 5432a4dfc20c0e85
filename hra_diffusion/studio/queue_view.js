// Reports a click on the cancel button of an item of the queue.
element.addEventListener('click', (event) => {
  const item = event.target.closest('[data-item]')?.dataset.item;
  if (item) trigger('remove', { item });
});
