//! CSKV on a trained model: what was said long ago is still there, where a cache of recent tokens has lost it.

use leanbits::kv_cache_quant::{
    Attention, KeyStorage, KvCacheLayer, KvGeometry, KvMethod, KvRows, Pair, Positions, QuantizedKv, RopePairing,
    RopeTable, StreamStatistics, Workspace,
};
use leanbits::models::eval::log_softmax;
use leanbits::models::{
    BoxError, Config, Decoder, KeyValues, KvCache, KvRows as ModelRows, KvScratch, KvState, KvStep, Observer,
};
use std::path::Path;
use std::sync::Arc;

const SINKS: usize = 4;

/// A cache that keeps keys before the rotary turn and, where told so, forgets all but the first and the newest tokens.
#[derive(Debug)]
struct Slot {
    cache: QuantizedKv,
    table: Arc<RopeTable>,
    seen: usize,
    /// Newest tokens that stay; all if `None`.
    recent: Option<usize>,
    /// Bytes of tokens, not of what all caches share.
    most: Arc<std::sync::atomic::AtomicU64>,
}

impl KvCache for Slot {
    fn len(&self) -> usize {
        self.seen
    }

    fn append<'a>(&'a mut self, _: ModelRows<'_>, _: &'a mut KvScratch) -> Result<ModelRows<'a>, BoxError> {
        Err("this cache has attention of its own".into())
    }

    fn attends(&self) -> bool {
        true
    }

    fn attend(&mut self, step: KvStep<'_>, out: &mut [f32]) -> Result<(), BoxError> {
        let position = u32::try_from(self.seen)?;
        let mut keys = step.new.keys.to_vec();
        self.table.unrotate(&mut keys, self.cache.geometry().dim_k, position)?;
        let rows = KvRows { keys: &keys, values: step.new.values };
        let request =
            Attention { positions: Positions::At(&[position]), ..Attention::of(step.queries).with_fresh(rows) };
        self.cache.attend(&request, out, &mut Workspace::default())?;
        self.cache.append(rows, Positions::At(&[position]))?;
        self.seen += 1;
        if let Some(recent) = self.recent
            && self.cache.len() > SINKS + recent
        {
            self.cache.evict(SINKS..self.cache.len() - recent)?;
        }
        let bytes = self.cache.bytes();
        let tokens = bytes.codes + bytes.metadata + bytes.full_precision;
        self.most.fetch_max(tokens, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn reset(&mut self) {
        self.cache.reset();
        self.seen = 0;
    }

    fn bytes(&self) -> u64 {
        self.cache.bytes().total()
    }
}

/// Keys before the turn, and values, of every layer.
#[derive(Default)]
struct Rows(Vec<[Vec<f32>; 2]>);

impl Observer for Rows {
    fn input(&mut self, _: &str, _: usize, _: &[f32]) {}

    fn key_values(&mut self, rows: &KeyValues<'_>) {
        self.0.resize_with(self.0.len().max(rows.layer + 1), Default::default);
        self.0[rows.layer][0].extend_from_slice(rows.keys_before_turn);
        self.0[rows.layer][1].extend_from_slice(rows.values);
    }
}

fn geometry(config: &Config) -> KvGeometry {
    let of = config.kv_geometry();
    KvGeometry { kv_heads: of.kv_heads, q_heads: of.q_heads, dim_k: of.dim_k, dim_v: of.dim_v }
}

/// Nats a byte of `answer` after `before`, and the bytes that the tokens of one layer took.
fn nats(decoder: &Decoder, before: &str, answer: &str, method: &str, rows: &Rows, recent: Option<usize>) -> (f64, u64) {
    let (config, method) = (decoder.config(), method.parse::<KvMethod>().unwrap());
    let turn = config.rope.table(0, 512);
    let (cos, sin) = (turn.cosines().to_vec(), turn.sines().to_vec());
    let table = Arc::new(RopeTable::new(RopePairing::Half, config.rope.rotary_dim, cos, sin).unwrap());
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let g = geometry(config);
    let mut state = KvState::with(config, |layer, _| {
        let [keys, values] = &rows.0[layer];
        let statistics = Pair {
            keys: StreamStatistics::of(keys, g.key_width()).unwrap(),
            values: StreamStatistics::of(values, g.value_width()).unwrap(),
        };
        let storage = KeyStorage::PreRope(table.clone());
        let cache = method.cache(g, storage, method.policy(), Some(&statistics)).unwrap();
        Box::new(Slot { cache, table: table.clone(), seen: 0, recent, most: most.clone() })
    });
    let tokens: Vec<u32> = before.bytes().chain(answer.bytes()).map(u32::from).collect();
    let hidden = decoder.extend(&tokens, &mut state, None).unwrap();
    let logits = decoder.logits(&hidden, before.len() - 1..tokens.len() - 1).unwrap();
    let losses = logits.chunks_exact(256).zip(answer.bytes()).map(|(row, byte)| -log_softmax(row, byte.into()));
    (losses.sum::<f64>() / answer.len() as f64, most.load(std::sync::atomic::Ordering::Relaxed))
}

#[test]
fn a_name_far_behind_the_window_is_still_known_and_a_cache_of_recent_tokens_has_lost_it() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let decoder = Decoder::open(&models.join("tiny-llama")).unwrap();
    let text = std::fs::read_to_string(models.join("heldout.txt")).unwrap();
    let plain: String = text.chars().filter(char::is_ascii).collect();
    let mut rows = Rows::default();
    let calibration: Vec<Vec<u32>> =
        plain.as_bytes()[20_000..28_192].chunks(512).map(|text| text.iter().map(|&b| b.into()).collect()).collect();
    let views: Vec<&[u32]> = calibration.iter().map(Vec::as_slice).collect();
    decoder.hidden(&views, Some(&mut rows)).unwrap();

    let (mut full, mut ours, mut recent, mut unknown) = (0.0, 0.0, 0.0, 0.0);
    let names = ["Quorbil Zanthe", "Wexmar Oddvik"];
    for (index, name) in names.into_iter().enumerate() {
        let filler = &plain[index * 4000..index * 4000 + 250];
        let (first, rest) = name.split_at(3);
        let before = format!("The story of {name}. Early life of {name}. {filler} The story of {first}");
        // Half of the channels behind a window of 32.
        let (all, _) = nats(&decoder, &before, rest, "f16", &rows, None);
        let (latents, bytes) = nats(&decoder, &before, rest, "cskv:0.5", &rows, None);
        // As many bytes of exact tokens, the first four among them (StreamingLLM).
        let token = 2 * (geometry(decoder.config()).key_width() + geometry(decoder.config()).value_width());
        let kept = usize::try_from(bytes).unwrap() / token - SINKS;
        let (newest, _) = nats(&decoder, &before, rest, "f16", &rows, Some(kept));
        let (nothing, _) = nats(&decoder, &format!("{filler} The story of {first}"), rest, "f16", &rows, None);
        println!("{name}: {all:.2} full, {latents:.2} CSKV, {newest:.2} of the {kept} newest, {nothing:.2} without");
        assert!(kept < 250, "{kept} tokens reach back to the name");
        (full, ours, recent, unknown) = (full + all, ours + latents, recent + newest, unknown + nothing);
    }
    assert!(full < 0.6 * unknown, "the model does not look back: {full} with the name, {unknown} without");
    assert!(recent > 0.8 * unknown, "{recent} nats of recent tokens, {unknown} where there was no name");
    assert!(ours - full < 0.3 * (recent - full), "{full} full, {ours} CSKV, {recent} of recent tokens");
}
