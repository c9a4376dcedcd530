"""The page's look and its one small script, which only adds: the page reads the same without it.

Colours are named by meaning and defined for light, dark and paper. What is seen is blue and what it is held against
orange and dashed, a pair that all kinds of colour vision tell apart; the heat map's steps differ in lightness first.
"""

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#566372;--line:#dfe4ea;--grid:#e6eaef;
--link:#0a5fc0;--seen:#0a6cd6;--expected:#b85c00;--estimate:#7a4bbd;--drift:#a8321a;--drift-soft:#fbe7e2;
--calm:#1a6b43;--calm-soft:#e3f3ea;--open-line:#7b8896;--warn:#7a5000;--warn-soft:#fff4d9;--warn-line:#e3bd66;
--h0:#e8edf2;--h1:#cfdcf0;--h2:#9dbfe6;--h3:#5b93d0;--h4:#2a5ea8;--h5:#14295c;--mark:#b83200}
@media(prefers-color-scheme:dark){:root{--page:#0f141a;--card:#171e26;--ink:#e6ebf1;--soft:#a0adba;--line:#2a3440;
--grid:#26303a;--link:#6cb2ff;--seen:#5aa9ff;--expected:#f0a04a;--estimate:#c3a0f5;--drift:#ff9478;--drift-soft:#42211a;
--calm:#6fd69c;--calm-soft:#14301f;--open-line:#8795a3;--warn:#ffd47a;--warn-soft:#33290f;--warn-line:#6a5320;
--h0:#222c37;--h1:#1f3f63;--h2:#2460a0;--h3:#3f8bd8;--h4:#86c0f5;--h5:#e4f3ff;--mark:#ff9a5c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:12px}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:32px}
.skip{position:absolute;left:-9999px}.skip:focus{left:12px;top:8px;background:var(--card);padding:6px 10px}
.eyebrow{color:var(--soft);font-size:12px;letter-spacing:.08em;text-transform:uppercase;margin:0}
h1{font-size:30px;line-height:1.2;margin:2px 0 12px;overflow-wrap:anywhere}
h1 small,h2 small{color:var(--soft);font-weight:500;font-size:.75em}
h2{font-size:24px;line-height:1.25;margin:0 0 8px;overflow-wrap:anywhere}
h3{font-size:19px;line-height:1.3;margin:0 0 4px;overflow-wrap:anywhere}
h4{font-size:14px;margin:20px 0 0}
p{margin:6px 0;max-width:92ch;overflow-wrap:anywhere}
.lead{font-size:19px;line-height:1.45;margin:8px 0 10px}
.badges{margin:0}
.soft,figcaption,td.soft{color:var(--soft);font-size:13.5px}
.said{font-size:16px}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
nav{font-size:14px;display:flex;flex-wrap:wrap;gap:2px 18px;margin:14px 0 0}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,button:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);
outline-offset:2px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 22px;margin:16px 0}
.group>h3{margin:26px 0 4px}section.group>h3{margin-top:0}
.version-head{border-top:3px solid var(--line);margin:44px 0 0;padding-top:20px}
.versions{list-style:none;padding:0;margin:10px 0}
.versions li{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 14px;margin:8px 0}
.versions a{font-weight:650;font-size:17px;overflow-wrap:anywhere}
.banner{background:var(--warn-soft);border:1px solid var(--warn-line);border-left-width:5px;border-radius:8px;
padding:8px 14px;margin:10px 0;max-width:none}
.banner b{color:var(--warn)}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12.5px;font-weight:600;white-space:nowrap;
border:1px solid currentColor;vertical-align:1px;letter-spacing:0}
.badge.drift{color:var(--drift);background:var(--drift-soft)}
.badge.drift::before{content:"▲ ";font-size:9px;vertical-align:1px}
.badge.not_found{color:var(--calm);background:var(--calm-soft)}
.badge.not_enough_evidence{color:var(--soft);border-style:dashed}
.severity{font-size:13px;font-weight:500;white-space:nowrap;color:var(--ink);letter-spacing:0}
.bars{display:inline-flex;gap:2px;margin-right:5px}
.bars i{width:5px;height:11px;border-radius:1px;border:1px solid var(--open-line)}
.bars i.on{background:var(--drift);border-color:var(--drift)}
.scroll{overflow-x:auto;margin:10px -22px 0;padding:0 22px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums;position:relative}
th,td{padding:6px 9px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:nowrap;font-size:13px}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:140px;max-width:420px}
tbody tr:last-child>*{border-bottom:0}
td.n,th.n{text-align:right;white-space:nowrap}
td.moment{white-space:nowrap}
th small{display:block;color:var(--soft);font-weight:400;font-size:13px}
.sides td{min-width:130px}.sides tbody th{min-width:0;white-space:nowrap}
th button{all:unset;cursor:pointer;font:inherit;color:inherit}
th button::after{content:"↕";opacity:.35;margin-left:3px}
th[aria-sort=ascending] button::after{content:"↑";opacity:1}
th[aria-sort=descending] button::after{content:"↓";opacity:1}
figure{margin:12px 0 0}
figcaption{margin-top:4px;max-width:92ch}
.key{display:flex;flex-wrap:wrap;gap:4px 20px;margin:8px 0;padding:0;list-style:none;font-size:13px;color:var(--soft)}
.swatch{display:inline-block;width:22px;height:0;border-top:3px solid;vertical-align:4px;margin-right:7px}
.swatch.seen{border-color:var(--seen)}.swatch.expected{border-top:2px dashed var(--expected)}
.swatch.base{border-top:2px dashed var(--expected)}.swatch.estimate{border-top:3px dotted var(--estimate)}
.swatch.missing{border-top:1px dashed var(--open-line)}
.swatch.strong{border-top:5px solid var(--mark)}.swatch.weak{border-top:2px solid var(--soft)}
.framed{position:relative;padding:4px 0 40px 54px}.framed.bare{padding-left:0}
.box{position:relative;border-bottom:1px solid var(--open-line)}
svg.plot{display:block;width:100%;height:210px}
.beyond{position:absolute;top:2px;font-size:12.5px;font-weight:600;color:var(--link);
padding:0 5px}
.beyond.left{left:2px}.beyond.right{right:2px}
.x-ticks{position:relative;height:0;font-size:12px;line-height:1.3;color:var(--soft)}
.x-ticks span{position:absolute;top:5px;transform:translateX(-50%);text-align:center;white-space:nowrap}
.x-ticks span.first{transform:none;text-align:left}.x-ticks span.last{transform:translateX(-100%);text-align:right}
.x-ticks i{display:block;font-style:normal}
.y-ticks{position:absolute;left:0;width:48px;top:4px;bottom:41px;font-size:12px;color:var(--soft)}
.y-ticks span{position:absolute;right:0;transform:translateY(-50%)}
line.grid{stroke:var(--grid);stroke-width:1;vector-effect:non-scaling-stroke}
.line{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
.line.seen{stroke:var(--seen)}.line.expected{stroke:var(--expected);stroke-dasharray:6 4;stroke-width:1.7}
.line.estimate{stroke:var(--estimate);stroke-dasharray:2 3;stroke-width:2.5}
.line.base{stroke:var(--expected);stroke-dasharray:6 4;stroke-width:1.5}
.area.seen{fill:var(--seen);fill-opacity:.2}.area.expected{fill:var(--expected);fill-opacity:.13}
.hover{fill:transparent}.hover:hover{fill:var(--ink);fill-opacity:.08}
.bars-cell{width:50%;min-width:130px}
.pair-bar{height:9px;margin:2px 0}
.pair-bar i{display:block;height:100%;border-radius:2px;min-width:1px}
.pair-bar i.seen{background:var(--seen)}
.pair-bar i.expected{border:1.5px dashed var(--expected);background:color-mix(in srgb,var(--expected) 16%,transparent)}
.heat{margin-top:12px;table-layout:fixed}
.heat th,.heat td{border:0;padding:2px 0;vertical-align:middle}
.heat .names{width:285px}
.heat tbody th{padding-right:14px;font-size:13px;font-weight:500;min-width:0;max-width:none}
.heat th>div:not(.x-ticks){display:flex;gap:8px;align-items:baseline;justify-content:space-between}
.heat th span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;min-width:0}
.heat .badge{font-size:10.5px;padding:0 7px;flex:none}
.heat thead th{height:40px;vertical-align:bottom;font-weight:500;position:relative}
.heat thead .x-ticks{position:absolute;left:0;right:0;bottom:36px}
svg.strip{display:block;width:100%;height:26px}
line.missing{stroke:var(--open-line);stroke-width:1;stroke-dasharray:3 4;vector-effect:non-scaling-stroke}
.h0{fill:var(--h0);background:var(--h0)}.h1{fill:var(--h1);background:var(--h1)}.h2{fill:var(--h2);background:var(--h2)}
.h3{fill:var(--h3);background:var(--h3)}.h4{fill:var(--h4);background:var(--h4)}.h5{fill:var(--h5);background:var(--h5)}
.mark.strong{fill:var(--mark)}.mark.weak{fill:var(--soft)}
.ramp{display:inline-flex;vertical-align:-2px;margin-right:7px}.ramp i{width:16px;height:13px}
details{border-top:1px solid var(--line)}
details:first-of-type{border-top:0}
summary{cursor:pointer;padding:8px 0;font-size:14.5px;overflow-wrap:anywhere}
summary b{font-weight:600;margin-right:6px}
details>div{padding:0 0 18px}
dl{display:grid;grid-template-columns:minmax(150px,max-content) 1fr;gap:5px 20px;margin:12px 0 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;max-width:92ch}
ul.plain{margin:6px 0 0;padding-left:20px;font-size:14px}ul.plain li{overflow-wrap:anywhere}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.92em;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:13px;padding-bottom:40px}
@media screen and (max-width:760px){
main,header,footer{padding-left:12px;padding-right:12px}
header{padding-top:20px}h1{font-size:25px}.lead{font-size:17px}h3{font-size:18px}
section{padding:14px 14px;border-radius:10px}.scroll{margin:8px -14px 0;padding:0 14px}
.minor{display:none}
svg.plot{height:170px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:9px}
.heat,.heat thead,.heat tbody,.heat tr,.heat td,.heat th{display:block}.heat tbody th{padding:5px 0 1px}
.heat thead th:first-child{display:none}
th,td{padding:6px 7px}
.bars-cell{width:auto;min-width:110px}}
@media print{
:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#ddd;--link:#0a4a95;
--seen:#0a58b0;--expected:#a35200;--estimate:#6a3dab;--drift:#9c2c15;--drift-soft:#fff;--calm:#155a38;--calm-soft:#fff;
--open-line:#777;--warn:#6b4700;--warn-soft:#fff;--warn-line:#b99;
--h0:#e8edf2;--h1:#cfdcf0;--h2:#9dbfe6;--h3:#5b93d0;--h4:#2a5ea8;--h5:#14295c;--mark:#b83200}
body{font-size:10.5pt}nav,.skip,th button::after{display:none}
main,header,footer{max-width:none;padding-left:0;padding-right:0}
section{border:0;padding:0;margin:14px 0}.scroll{overflow:visible;margin:8px 0 0;padding:0}
table{font-size:8.5pt}thead th{white-space:normal}th,td{padding:3px 5px}
svg.plot{height:150px}a{text-decoration:none}
tr,figure,.banner,.signal>p{break-inside:avoid}h2,h3,h4{break-after:avoid}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const value = row.cells[column].dataset.v;
        return value === undefined ? row.cells[column].textContent : value === "" ? null : Number(value);
      };
      const compare = (first, second) => {
        const a = key(first), b = key(second);
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "string" ? a.localeCompare(b) : a - b;
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
const unfold = () => {
  const found = location.hash && document.getElementById(location.hash.slice(1));
  const folded = found && found.closest("details");
  if (folded && !folded.open) {
    folded.open = true;
    found.scrollIntoView();
  }
};
addEventListener("hashchange", unfold);
unfold();
const opened = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.open = true;
    opened.push(one);
  }
});
addEventListener("afterprint", () => opened.splice(0).forEach((one) => { one.open = false; }));
"""
