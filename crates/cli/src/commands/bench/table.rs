//! A report as text: for a terminal, as Markdown, as comma-separated values.

use ocelli_engine::bench::{FIGURES, Load, Loads, Machine, Report, Run, Share, Spread, Work};

use crate::terminal::bytes;

/// Everything, for people.
pub(super) fn report(report: &Report) -> String {
    let lines = [head(report), vec![String::new()], runs(report), vec![String::new()], tail(report)].concat();
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What was measured.
fn head(report: &Report) -> Vec<String> {
    let Report { vision_tokens, prompt_tokens, completion_tokens, n_tiles, .. } = report;
    let picture = match report.image_size {
        Some([width, height]) => format!("{width}x{height}, {n_tiles} tile(s), {vision_tokens} vision tokens"),
        None => "none".to_owned(),
    };
    vec![
        row(
            "model",
            &format!("{} ({}, {}, {})", report.model, report.model_type, precision(report), report.weights_in),
        ),
        row("processor", &format!("{} threads, {}", report.threads, report.isa)),
        row("limits", &limits(&report.machine)),
        row("picture", &picture),
        row("tokens", &format!("{prompt_tokens} of the prompt, {completion_tokens} of the answer")),
        row("load", &loads(&report.loads)),
    ]
}

/// `bf16`, or what was made of it: `bf16 as q4, vision as q8, cache in bf16`.
pub(super) fn precision(report: &Report) -> String {
    let Report { dtype, quant, quant_vision, kv_cache, .. } = report;
    let text = if *quant == "none" { dtype.clone() } else { format!("{dtype} as {quant}") };
    let vision = if *quant_vision == "none" { String::new() } else { format!(", vision as {quant_vision}") };
    format!("{text}{vision}, cache in {kv_cache}")
}

fn loads(loads: &Loads) -> String {
    let Loads { load_ms, cold_load_ms, cold_ready_ms, warm_load_ms, warm_ready_ms } = *loads;
    let with = |name: &str, load: Option<f64>, ready: Option<f64>| {
        let both = load.zip(ready);
        both.map(|(load, ready)| format!(", {name} {load:.1} ms ({ready:.1} ms to a token)")).unwrap_or_default()
    };
    if warm_load_ms.is_none() {
        return format!("{load_ms:.1} ms to build");
    }
    let (cold, warm) = (with("cold", cold_load_ms, cold_ready_ms), with("warm", warm_load_ms, warm_ready_ms));
    format!("first {load_ms:.1} ms{cold}{warm}")
}

/// One line per run, then the statistics; a column for every figure but `decode_ms`, which the speed tells.
fn runs(report: &Report) -> Vec<String> {
    let figures: Vec<_> = FIGURES
        .iter()
        .filter_map(|figure| Some((figure, title(figure.name)?, report.summary.get(figure.name)?)))
        .collect();
    let head: Vec<String> = figures.iter().map(|(_, title, _)| column(title)).collect();
    let mut lines = vec![row("", &head.concat())];
    let value = |run: &Run, of: fn(&Run) -> Option<f64>| column(&of(run).map(number).unwrap_or_default());
    for (idx, run) in report.runs.iter().enumerate() {
        let values: Vec<String> = figures.iter().map(|(figure, _, _)| value(run, figure.of)).collect();
        lines.push(row(&format!("run {}", idx + 1), &values.concat()));
    }
    for (name, of) in STATISTICS {
        let values: Vec<String> = figures.iter().map(|(_, _, spread)| column(&statistic(name, of(spread)))).collect();
        lines.push(row(name, &values.concat()));
    }
    lines
}

/// Memory, work per second, and whether it can be trusted.
fn tail(report: &Report) -> Vec<String> {
    let memory = &report.memory;
    let known = |bytes_held: Option<u64>| bytes_held.map_or_else(|| "unknown".to_owned(), bytes);
    let peaks = format!(
        "{} ({} while loading, {} of files at the end)",
        known(memory.peak_rss_bytes),
        known(memory.load_peak_rss_bytes),
        known(memory.file_bytes)
    );
    let parts = [
        ("weights", memory.weight_bytes),
        ("keys and values", memory.kv_bytes),
        ("activations", memory.activation_bytes),
        ("picture", memory.picture_bytes),
    ];
    let parts = parts.map(|(name, held)| format!("{name} {}", bytes(held))).join(", ");
    let work = &report.utilisation;
    let operations = |work: &Work| format!("{:.3} TOPS{}", work.per_second / 1e12, share(work.share));
    let decode = |work: &Work| format!("{:.2} GB/s of weights{}", work.per_second / 1e9, share(work.share));
    let mut lines = vec![
        row("peak memory", &peaks),
        row("of which", &format!("{parts}, rest {}", known(memory.rest_bytes))),
        row("prefill", &operations(&work.prefill)),
    ];
    lines.extend(work.vision.as_ref().map(|vision| row("vision", &operations(vision))));
    lines.extend(work.decode.as_ref().map(|work| row("decode", &decode(work))));
    lines.push(row("output", &format!("{} (the same in all runs)", report.output_hash)));
    lines
}

fn share(Share { of, share }: Share) -> String {
    let of = if of == "read" { "what can be read".to_owned() } else { format!("the {of} peak") };
    format!(" ({:.0} % of {of})", 100.0 * share)
}

/// All limits in a line.
fn limits(machine: &Machine) -> String {
    let peaks = machine.operations_per_second.iter().map(|(name, peak)| format!("{name} {:.3} TOPS, ", peak / 1e12));
    format!("{}read {:.1} GB/s", peaks.collect::<String>(), machine.read_bytes_per_second / 1e9)
}

/// The machine's limits, for people.
pub(super) fn machine(machine: &Machine) -> String {
    let mut text = row("machine", &format!("{} threads, {}", machine.threads, machine.isa)) + "\n";
    for (name, unit, value) in machine_rows(machine) {
        text.push_str(&format!("{name:<26} {:>10} {unit}\n", number(value)));
    }
    text
}

pub(super) fn machine_markdown(machine: &Machine) -> String {
    let mut text = format!("{} threads, {}\n\n| limit | value | unit |\n|---|---|---|\n", machine.threads, machine.isa);
    for (name, unit, value) in machine_rows(machine) {
        text.push_str(&format!("| {name} | {} | {unit} |\n", number(value)));
    }
    text
}

pub(super) fn machine_csv(machine: &Machine) -> String {
    let mut text = "threads,isa,limit,unit,value\n".to_owned();
    for (name, unit, value) in machine_rows(machine) {
        text.push_str(&format!("{},{},{name},{unit},{value:.3}\n", machine.threads, machine.isa));
    }
    text
}

/// Name, unit and value of every limit and product.
fn machine_rows(machine: &Machine) -> Vec<(String, &'static str, f64)> {
    let mut rows = vec![("read".to_owned(), "GB/s", machine.read_bytes_per_second / 1e9)];
    for (name, peak) in &machine.operations_per_second {
        rows.push((format!("{name} peak"), "GOP/s", peak / 1e9));
    }
    for product in &machine.products {
        let (unit, value) = match product.rows {
            1 => ("GB/s", product.bytes_per_second),
            _ => ("GOP/s", product.operations_per_second),
        };
        let name = format!("{} {}x{}x{}", product.weights, product.rows, product.inputs, product.outputs);
        rows.push((name.clone(), unit, value / 1e9));
        rows.push((format!("{name} of {}", product.share.of), "%", 100.0 * product.share.share));
    }
    rows
}

/// A table of the statistics under a line that says of what.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!(
        "{}, {}, {} threads, {}: {} + {} tokens, {} runs; {}\n\n",
        report.model,
        precision(report),
        report.threads,
        report.isa,
        report.prompt_tokens,
        report.completion_tokens,
        report.runs.len(),
        limits(&report.machine)
    );
    text.push_str("| figure | unit | median | mean | min | max | variation |\n|---|---|---|---|---|---|---|\n");
    for figure in FIGURES {
        let Some(Spread { mean, median, min, max, cv }) = report.summary.get(figure.name) else { continue };
        let values = [median, mean, min, max].map(|value| number(*value)).join(" | ");
        text.push_str(&format!("| {} | {} | {values} | {:.1} % |\n", figure.name, figure.unit, 100.0 * cv));
    }
    for (name, unit, value) in singles(report) {
        text.push_str(&format!("| {name} | {unit} | {} | | | | |\n", number(value)));
    }
    text
}

/// One row per figure, with a header.
pub(super) fn csv(report: &Report) -> String {
    let mut text =
        "model,dtype,quant,quant_vision,kv_cache,isa,threads,vision_tokens,prompt_tokens,completion_tokens,runs,\
        figure,unit,median,mean,min,max,cv\n"
            .to_owned();
    // A model's name may be a path with anything in it.
    let model = report.model.replace('"', "\"\"");
    let Report {
        dtype,
        quant,
        quant_vision,
        kv_cache,
        isa,
        threads,
        vision_tokens,
        prompt_tokens,
        completion_tokens,
        ..
    } = report;
    let mut line = |name: &str, unit: &str, values: &str| {
        text.push_str(&format!(
            "\"{model}\",{dtype},{quant},{quant_vision},{kv_cache},{isa},{threads},{vision_tokens},{prompt_tokens},\
             {completion_tokens},{},{name},{unit},{values}\n",
            report.runs.len()
        ));
    };
    for figure in FIGURES {
        let Some(Spread { mean, median, min, max, cv }) = report.summary.get(figure.name) else { continue };
        line(figure.name, figure.unit, &format!("{median:.3},{mean:.3},{min:.3},{max:.3},{cv:.4}"));
    }
    for (name, unit, value) in singles(report) {
        line(name, unit, &format!("{value:.3},,,,"));
    }
    text
}

/// What is measured once: loading, memory, shares of the machine.
pub(super) fn singles(report: &Report) -> Vec<(&'static str, &'static str, f64)> {
    let Loads { load_ms, cold_load_ms, cold_ready_ms, warm_load_ms, warm_ready_ms } = report.loads;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let work = &report.utilisation;
    let percent = |work: Work| 100.0 * work.share.share;
    let rows = [
        ("load_ms", "ms", Some(load_ms)),
        ("cold_load_ms", "ms", cold_load_ms),
        ("cold_ready_ms", "ms", cold_ready_ms),
        ("warm_load_ms", "ms", warm_load_ms),
        ("warm_ready_ms", "ms", warm_ready_ms),
        ("peak_rss", "MiB", report.memory.peak_rss_bytes.map(mebibytes)),
        ("weights", "MiB", Some(mebibytes(report.memory.weight_bytes))),
        ("vision_share", "%", work.vision.map(percent)),
        ("prefill_share", "%", Some(percent(work.prefill))),
        ("decode_share", "%", work.decode.map(percent)),
    ];
    rows.into_iter().filter_map(|(name, unit, value)| Some((name, unit, value?))).collect()
}

/// Why the figures, which should be `whose` alone, may not be or may not be repeatable.
pub(super) fn doubts(load: &Load, whose: &str) -> Vec<String> {
    let mut doubts = Vec::new();
    if load.was_busy {
        let mut reasons = Vec::new();
        reasons.extend(load.load_average.map(|load| format!("load average {load:.2} before it began")));
        reasons.extend(load.waiting_share.map(|share| format!("threads waited {:.1} % of the time", 100.0 * share)));
        reasons.extend(load.other_processors.map(|others| format!("others kept {others:.2} processors busy")));
        doubts.push(format!("the machine was busy ({}): the figures are not {whose} alone", reasons.join(", ")));
    }
    if let Some(clock) = load.slowest_clock.filter(|_| load.was_throttled) {
        let percent = 100.0 * clock;
        doubts.push(format!("the processor's clock fell to {percent:.0} %: the figures are not all of one speed"));
    }
    doubts
}

type Statistic = (&'static str, fn(&Spread) -> f64);

const STATISTICS: [Statistic; 5] = [
    ("mean", |spread| spread.mean),
    ("median", |spread| spread.median),
    ("min", |spread| spread.min),
    ("max", |spread| spread.max),
    (VARIATION, |spread| spread.cv),
];
const VARIATION: &str = "variation";

fn statistic(name: &str, value: f64) -> String {
    if name == VARIATION { format!("{:.1} %", 100.0 * value) } else { number(value) }
}

/// A figure's name with its unit, short enough for a column; `None` for what has none.
fn title(name: &str) -> Option<&'static str> {
    Some(match name {
        "preprocess_ms" => "prepare ms",
        "vision_ms" => "vision ms",
        "prefill_ms" => "prefill ms",
        "prefill_tokens_per_second" => "prefill t/s",
        "ttft_ms" => "1st tok ms",
        "tokens_per_second" => "decode t/s",
        "narration_ms" => "20 tok ms",
        "beam_tokens_per_second" => "beams t/s",
        "batch_tokens_per_second" => "batch t/s",
        _ => return None,
    })
}

fn row(name: &str, text: &str) -> String {
    format!("{name:<11} {text}")
}

fn column(text: &str) -> String {
    format!("{text:>12}")
}

/// Three to four digits that count.
pub(super) fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.1}") } else { format!("{value:.2}") }
}
