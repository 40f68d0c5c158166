//! Prints what appending and attending cost: one thread, 8 key-value heads of 128 read by 32 query heads.
//!
//! `cargo run --release -p kv-cache-quant --example cache_throughput [TOKENS]`

use kv_cache_quant::*;
use std::sync::Arc;
use std::time::Instant;

const HEADS: usize = 8;
const DIM: usize = 128;

fn rows(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 16384.0 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

/// A name, the codec of keys, the codec of values.
type Case = (&'static str, Arc<dyn Codec>, Arc<dyn Codec>);

/// Seconds that this thread has run, where the system says so: other work on the machine does not count.
fn seconds(since: Instant) -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let run = text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
    run.map_or_else(|| since.elapsed().as_secs_f64(), |ns| ns / 1e9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tokens = std::env::args().nth(1).map_or(Ok(8192), |text| text.parse::<usize>())?;
    let geometry = KvGeometry { kv_heads: HEADS, q_heads: 4 * HEADS, dim_k: DIM, dim_v: DIM };
    let format = |name: &str| -> Result<Arc<dyn Codec>, Box<dyn std::error::Error>> {
        Ok(Arc::new(TokenFormat::new(HEADS, DIM, name.parse()?)?))
    };
    let rotated = Mapped::new(Arc::new(Hadamard::new(HEADS, DIM)?), format("int4-min")?)?;
    let kivi = |name: &str| -> Result<Arc<dyn Codec>, Box<dyn std::error::Error>> {
        Ok(Arc::new(ChannelFormat::new(HEADS, DIM, 128, name.parse()?)?))
    };
    let skvq = || -> Result<Arc<dyn Codec>, Error> {
        let plan = ReorderPlan::identity(HEADS * DIM, 128)?;
        Ok(Arc::new(Skvq::new(SkvqConfig::default(), plan.clone(), vec![0.9; plan.groups()])?))
    };
    let plain: Arc<dyn Codec> = Arc::new(Plain::new(HEADS, DIM, FullPrecision::F16)?);
    let pm = || PmKvq::new(HEADS, DIM, PmKvqConfig { floor: Width::W2, ..PmKvqConfig::default() }).map(Arc::new);
    let cases: Vec<Case> = vec![
        ("f16", plain.clone(), plain),
        ("int8", format("int8")?, format("int8")?),
        ("int4-min", format("int4-min")?, format("int4-min")?),
        ("int2-g32-min", format("int2-g32-min")?, format("int2-g32-min")?),
        ("mxfp4", format("mxfp4")?, format("mxfp4")?),
        ("nvfp4", format("nvfp4")?, format("nvfp4")?),
        ("rotated int4-min", Arc::new(rotated.clone()), Arc::new(rotated)),
        ("kivi 4", kivi("int4-g32-min")?, format("int4-g32-min")?),
        ("kivi 2", kivi("int2-g32-min")?, format("int2-g32-min")?),
        ("skvq 2", skvq()?, skvq()?),
        ("pm-kvq 16", pm()?, pm()?),
    ];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| -> Result<(), Error> {
        let data = rows(tokens * HEADS * DIM);
        let queries = rows(4 * HEADS * DIM);
        let mut base = None;
        println!(
            "{tokens} tokens, one thread\n{:18} {:>9} {:>12} {:>12} {:>9}",
            "codec", "B/token", "append us", "attend ms", "to f16"
        );
        for (name, keys, values) in cases {
            let mut cache = QuantizedKv::new(geometry, KeyStorage::PostRope, keys, values, KvPolicy::default())?;
            let began = Instant::now();
            let start = seconds(began);
            for row in data.chunks_exact(HEADS * DIM) {
                cache.append(KvRows { keys: row, values: row }, Positions::Next)?;
            }
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let (append, bytes) =
                ((seconds(began) - start) * 1e6 / tokens as f64, cache.bytes().total() as f64 / tokens as f64);
            let (mut out, mut workspace) = (vec![0.0; 4 * HEADS * DIM], Workspace::default());
            let mut times: Vec<f64> = Vec::new();
            for _ in 0..7 {
                let start = seconds(began);
                cache.attend(&Attention::of(&queries), &mut out, &mut workspace)?;
                times.push((seconds(began) - start) * 1e3);
            }
            times.sort_by(f64::total_cmp);
            let speed = *base.get_or_insert(times[3]) / times[3];
            println!("{name:18} {bytes:9.0} {append:12.2} {:12.3} {speed:9.2}", times[3]);
        }
        Ok(())
    })?;
    Ok(())
}
