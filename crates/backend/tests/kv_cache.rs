//! Sequences share blocks, and none ever sees another's tokens.

use ocelli_backend::{BLOCK_TOKENS, Context, KvCache, KvShape, SequenceId, Tensor};
use ocelli_testkit::{Random, ReferenceBackend};

const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 1, head_dim: 2 };

/// Grows a sequence by tokens whose key is constant and whose value is the token: attention then gives their mean.
fn grow(kv: &mut KvCache<ReferenceBackend>, id: SequenceId, tokens: &[f32]) {
    let step = kv.step(&[(id, tokens.len())]);
    let keys = vec![0.0; tokens.len() * 2];
    let values: Vec<f32> = tokens.iter().flat_map(|&token| [token, -token]).collect();
    let shape = [tokens.len(), 1, 2];
    let (k, v) = (Tensor::new(&ReferenceBackend, &keys, &shape), Tensor::new(&ReferenceBackend, &values, &shape));
    kv.layer(0).append(&k, &v, &step);
}

/// The mean of a sequence's tokens and of one more.
fn mean_with(kv: &mut KvCache<ReferenceBackend>, id: SequenceId, token: f32) -> f32 {
    let len = kv.len(id);
    grow(kv, id, &[token]);
    kv.truncate(id, len);
    let step = kv.step(&[(id, 1)]);
    let q = Tensor::new(&ReferenceBackend, &[0.0, 0.0], &[1, 1, 2]);
    let mean = q.attend(kv.layer(0), 1.0, &step).to_vec()[0];
    kv.truncate(id, len);
    mean
}

#[test]
fn forks_diverge_without_touching_each_other() {
    let mut random = Random::new(1);
    for prefix in [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS + 7] {
        let mut kv = KvCache::new(&ReferenceBackend, SHAPE);
        let first = kv.start();
        let shared = random.values(prefix);
        grow(&mut kv, first, &shared);
        let second = kv.fork(first);
        let (tail_a, tail_b) = (random.values(40), random.values(40));
        grow(&mut kv, first, &tail_a);
        grow(&mut kv, second, &tail_b);

        let mean = |tail: &[f32]| shared.iter().chain(tail).sum::<f32>() / (prefix + tail.len() + 1) as f32;
        assert!((mean_with(&mut kv, first, 0.0) - mean(&tail_a)).abs() < 1e-5, "prefix {prefix}");
        assert!((mean_with(&mut kv, second, 0.0) - mean(&tail_b)).abs() < 1e-5, "prefix {prefix}");

        kv.end(first);
        assert!((mean_with(&mut kv, second, 0.0) - mean(&tail_b)).abs() < 1e-5, "after the other ended");
        kv.end(second);
        assert!(kv.is_empty());
    }
}

#[test]
fn a_truncated_fork_leaves_the_original_whole() {
    let mut kv = KvCache::new(&ReferenceBackend, SHAPE);
    let first = kv.start();
    grow(&mut kv, first, &[1.0; 50]);
    let second = kv.fork(first);
    kv.truncate(second, 10);
    grow(&mut kv, second, &[9.0; 50]);
    assert!((mean_with(&mut kv, first, 1.0) - 1.0).abs() < 1e-6);
    assert_eq!((kv.len(first), kv.len(second)), (50, 60));
}

#[test]
fn freed_blocks_are_used_again() {
    let mut kv = KvCache::new(&ReferenceBackend, SHAPE);
    for _ in 0..10 {
        let id = kv.start();
        let step = kv.step(&[(id, 2 * BLOCK_TOKENS)]);
        assert!(step.spans()[0].blocks.iter().all(|&block| block < 2), "{:?}", step.spans());
        kv.end(id);
    }
}

#[test]
fn places_go_on_behind_the_last_one_whatever_is_forked_or_cut_off() {
    let mut kv = KvCache::new(&ReferenceBackend, SHAPE);
    let id = kv.start();
    assert_eq!(kv.step(&[(id, 2)]).places(), [[0; 3], [1; 3]]);
    let step = kv.step_at(id, &[[2, 2, 2], [2, 2, 5]]);
    assert_eq!((step.positions(), step.places()), (&[2, 3][..], &[[2, 2, 2], [2, 2, 5]][..]));
    let fork = kv.fork(id);
    let step = kv.step(&[(id, 1), (fork, 1)]);
    assert_eq!((step.positions(), step.places()), (&[4, 4][..], &[[6; 3], [6; 3]][..]));
    kv.truncate(id, 3);
    assert_eq!((kv.next_place(id), kv.next_place(fork)), (3, 7));
}

#[test]
fn each_sequence_looks_at_its_own_context() {
    let mut kv = KvCache::new(&ReferenceBackend, SHAPE);
    // Equal keys: attention gives the mean of the values.
    let context = |values: &[f32]| {
        let tensor = |values: &[f32]| Tensor::new(&ReferenceBackend, values, &[values.len() / 2, 1, 2]);
        Context::new(vec![(tensor(&vec![0.0; values.len()]), tensor(values))])
    };
    let (first, other) = (kv.start(), kv.start());
    kv.set_context(first, context(&[1.0, 2.0, 3.0, 4.0]));
    kv.set_context(other, context(&[10.0, 20.0]));
    let beam = kv.fork(first);
    let step = kv.step(&[(first, 1), (beam, 1), (other, 2)]);
    let q = Tensor::new(&ReferenceBackend, &[0.5; 8], &[4, 1, 2]);
    let attended = kv.cross_attend(0, &q, 1.0, &step);
    assert_eq!(attended.shape(), [4, 1, 2]);
    assert_eq!(attended.to_vec(), [2.0, 3.0, 2.0, 3.0, 10.0, 20.0, 10.0, 20.0]);
    let step = kv.step(&[(beam, 1), (first, 1)]);
    let q = Tensor::new(&ReferenceBackend, &[0.5; 4], &[2, 1, 2]);
    assert_eq!(kv.cross_attend(0, &q, 1.0, &step).to_vec(), [2.0, 3.0, 2.0, 3.0]);
}
