// Reports a click on a finished cell of a grid, with the name of its image.
element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-image]');
  if (cell) trigger('cell', { image: cell.dataset.image });
});
