// Keys for the whole page, and the switch between light and dark.
document.addEventListener('keydown', (event) => {
  const click = (id) => {
    const button = [...document.querySelectorAll(id)].find((each) => each.offsetParent && !each.disabled);
    if (button) { event.preventDefault(); button.click(); }
  };
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    document.activeElement?.blur?.(); // so that what is being typed is sent
    setTimeout(() => click('#generate, #draw-grid, #teach'), 50);
  }
  if (event.key === 'Escape') click('#stop, #stop-grid');
}, true);

// Images of small models are shown larger than they are, but not so large that they blur.
const LARGER = 3;
document.addEventListener('load', ({ target }) => {
  const alone = target.closest?.('#images .thumbnail-item, #samples .thumbnail-item');
  const box = alone ? target : target.closest?.('#slider');
  if (box && target.naturalWidth) box.style.maxWidth = `${LARGER * target.naturalWidth}px`;
}, true);

function remembered() { try { return localStorage.getItem('studio-look'); } catch { return null; } }
function look(dark) {
  document.body.classList.toggle('dark', dark);
  try { localStorage.setItem('studio-look', dark ? 'dark' : 'light'); } catch { /* private windows forget */ }
}
document.addEventListener('click', (event) => {
  if (event.target.closest?.('#look')) look(!document.body.classList.contains('dark'));
});
window.addEventListener('load', () => {
  const asked = new URLSearchParams(location.search).get('__theme');
  if (!asked && remembered()) setTimeout(() => look(remembered() === 'dark'), 0);
});
