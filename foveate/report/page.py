"""The empty page with its style sheet."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { --ink: #1c2733; --muted: #5a6775; --line: #d7dde4; --wash: #f4f6f9; --good: #00694c; --flat: #8a5a00; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .9rem; padding-top: .9rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 1.8rem 0 .7rem; }
.lead { font-size: 1.1rem; margin: 0 0 1.2rem; max-width: 46rem; }
.card { background: var(--wash); border-radius: .5rem; padding: .8rem 1.1rem; font-size: .88rem; }
dl { margin: 0; display: flex; flex-wrap: wrap; gap: .35rem 2rem; }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Consolas, monospace; background: var(--wash); padding: .1em .35em; border-radius: .25em; }
figure { margin: 0; }
figcaption, .notes { color: var(--muted); font-size: .88rem; margin: .6rem 0 0; max-width: 52rem; }
.notes { padding-left: 1.1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 2rem 2.5rem; align-items: start; }
figure + .figures { margin-top: 2rem; }
.figures svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
thead th { font-size: .8rem; font-weight: 600; color: var(--muted); text-align: right; vertical-align: bottom; padding: 0 .6rem .5rem; line-height: 1.3; }
tbody th, td { padding: .55rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }
thead th:first-child, tbody th { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 9rem; }
td { text-align: right; }
td > span { white-space: nowrap; }
td:last-child > span { white-space: normal; }
td.word, thead th.word { text-align: left; }
td small, th small { display: block; color: var(--muted); font-weight: 400; font-size: .78rem; white-space: nowrap; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .45rem; }
.good > span { color: var(--good); font-weight: 700; }
.good > span::before { content: "\\2713\\00a0"; }
.flat > span { color: var(--flat); font-weight: 600; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1.2rem 2.2rem; }
.strip p { margin: 0 0 .3rem; font-size: .85rem; font-weight: 600; }
.cells { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .4rem; }
.cell { position: relative; }
.cell img { width: 100%; height: auto; display: block; image-rendering: pixelated; border-radius: .2rem; }
.cell small { color: var(--muted); font-size: .74rem; display: block; margin-top: .15rem; line-height: 1.25; }
.badge { position: absolute; top: .3rem; right: .3rem; background: var(--ink); color: #fff; font-size: .74rem; font-weight: 600; line-height: 1; padding: .22rem .34rem; border-radius: .25rem; }
footer { color: var(--muted); font-size: .82rem; margin-top: 3rem; }
@media (max-width: 52rem) {
  main { padding: 1.25rem 1rem 3rem; }
  table, tbody, tr, tbody th, td { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { border-top: 2px solid var(--line); padding: .7rem 0; }
  tbody th, td { border: 0; padding: .12rem 0; }
  tbody th { padding-bottom: .4rem; }
  tbody th small { display: inline; margin-left: .5rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  td::before { content: attr(data-head); color: var(--muted); font-size: .85rem; margin-right: auto; text-align: left; }
  td small { align-self: center; white-space: normal; }
}
@media print { main { max-width: none; padding: 0; } section { break-inside: avoid-page; } }
</style>
</head>
<body>
<main>
<header><h1>$title</h1>
$sentence
</header>
$machine
$sections
<footer>Written by foveate. Nothing on this page is loaded from elsewhere.</footer>
</main>
</body>
</html>
""")
