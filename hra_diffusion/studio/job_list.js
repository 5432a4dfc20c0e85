// Renders the list of training jobs: a button for each, which chooses the job. Texts are inserted as text.
const list = element.querySelector('.job-list');

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  return node;
}

function row(job) {
  const button = make('button', job.state, '');
  button.type = 'button';
  button.setAttribute('aria-label', `${job.name}, ${job.state}`);
  button.append(make('b', '', job.name), make('span', '', job.state), make('small', '', job.progress));
  button.addEventListener('click', () => { props.value = job.name; trigger('change'); });
  return button;
}

function render() {
  const jobs = props.entries || [];
  const top = list.scrollTop;
  const label = list.contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  list.replaceChildren(...jobs.map(row));
  if (!jobs.length) list.append(make('p', 'note', 'No training jobs yet.'));
  list.scrollTop = top;
  if (label) [...list.children].find((node) => node.getAttribute('aria-label')?.split(',')[0] === label.split(',')[0])?.focus();
}

render();
watch('entries', render);
