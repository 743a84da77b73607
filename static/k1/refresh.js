// Keeps a page up to date that asks for it: <main data-refresh="3000"> with parts <p id="…" data-live>.
//
// The page is fetched again and each part that has changed is filled anew; everything else, and so the focus and the
// place one has scrolled to, stays. A part may say what it depends on (data-live="running"): then only a change of that
// counts, for forms differ each time. Without this script the page reloads itself (a meta element in <noscript>).

const page = document.querySelector('[data-refresh]');
const stale = document.querySelector('[data-stale]');
const LONGEST_MS = 30_000;

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const shown = () =>
  document.hidden
    ? new Promise((resolve) => document.addEventListener('visibilitychange', resolve, { once: true }))
    : Promise.resolve();

const keyOf = (part) => part.dataset.live || part.innerHTML;

async function fetched() {
  const response = await fetch(location.href, { headers: { Accept: 'text/html' } });
  const text = await response.text();
  const found = new DOMParser().parseFromString(text, 'text/html');
  // Signed out, or gone: another page has come in place of this one.
  if (!response.ok || !found.querySelector('[data-live]')) throw new Error(`answered ${response.status}`);
  return found;
}

function fill(found) {
  for (const part of document.querySelectorAll('[data-live]')) {
    const fresh = found.getElementById(part.id);
    if (!fresh || keyOf(fresh) === keyOf(part)) continue;
    part.dataset.live = fresh.dataset.live;
    part.replaceChildren(...fresh.childNodes);
  }
}

async function follow() {
  const usual = Number(page.dataset.refresh);
  let pause = usual;
  for (;;) {
    await wait(pause);
    await shown();
    try {
      const found = await fetched();
      fill(found);
      stale.hidden = true;
      pause = usual;
      if (!found.querySelector('[data-refresh]')) return; // nothing changes any more
    } catch {
      stale.hidden = false;
      pause = Math.min(pause * 2, LONGEST_MS);
    }
  }
}

if (page) follow();
