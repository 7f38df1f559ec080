//! Everything that is wrong with a checkpoint is reported at once, by name.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::cell::RefCell;

use ocelli_backend::{
    Backend, Error, Held, Part, Precision, Quant, RandomWeights, Renamed, Role, Tensor, WeightSource, Weights,
};
use ocelli_formats::{Checkpoint, Dtype, SharedBytes, TensorData};
use ocelli_testkit::ReferenceBackend;

fn checkpoint(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensor = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|value| value as f32).collect();
        TensorData::from_f32(shape.to_vec(), &values).unwrap()
    };
    Checkpoint::from_tensors(tensors.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect())
}

fn keep(name: &str) -> Renamed {
    Renamed::To(name.to_owned())
}

fn open<'a>(source: impl Into<WeightSource<'a>>) -> Weights<'a, ReferenceBackend> {
    Weights::new(&ReferenceBackend, source, keep).unwrap()
}

#[test]
fn a_layer_reads_its_own_tensors() {
    let tensors = checkpoint(&[("mlp.up.weight", &[2, 3]), ("mlp.up.bias", &[2])]);
    let weights = open(&tensors);
    let linear = weights.at("mlp").linear_bias("up", 3, 2).unwrap();
    weights.finish().unwrap();
    let x = Tensor::new(&ReferenceBackend, &[1.0, 0.0, 2.0], &[1, 3]);
    assert_eq!(linear.forward(&x).to_vec(), [4.0, 14.0]);
}

#[test]
fn missing_left_over_and_misshaped_tensors_are_all_listed() {
    let tensors = checkpoint(&[("a.weight", &[2, 3]), ("b.weight", &[3, 2]), ("spare", &[1])]);
    let weights = open(&tensors);
    weights.linear("a", 3, 2).unwrap();
    weights.linear("b", 3, 2).unwrap();
    weights.linear("c", 3, 2).unwrap();
    let Error::Mismatch { missing, left_over, misshaped } = weights.finish().unwrap_err() else { panic!("a mismatch") };
    assert_eq!((missing, left_over), (vec!["c.weight".to_owned()], vec!["spare".to_owned()]));
    assert_eq!(misshaped, ["b.weight (F32 [3, 2], expected [2, 3])"]);
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let names: Vec<String> = (0..20).map(|layer| format!("layers.{layer}.weight")).collect();
    let shape: &[usize] = &[1];
    let tensors: Vec<(&str, &[usize])> = names.iter().map(|name| (name.as_str(), shape)).collect();
    let message = open(&checkpoint(&tensors)).finish().unwrap_err().to_string();
    assert!(message.contains("20 left over: ") && message.contains("and 8 more"), "{message}");
}

#[test]
fn two_names_of_one_weight_are_refused() {
    let tensors = checkpoint(&[("old.weight", &[1]), ("new.weight", &[1])]);
    let rename = |_: &str| Renamed::To("weight".to_owned());
    let error = Weights::new(&ReferenceBackend, &tensors, rename).err().unwrap();
    assert_eq!(error.to_string(), "tensors new.weight and old.weight are the same weight under two names");
}

#[test]
fn a_stack_is_taken_apart() {
    let tensors = checkpoint(&[("mlp.stack", &[2, 1, 3]), ("plain", &[2, 3])]);
    let rename = |name: &str| match name {
        "plain" => Renamed::Parts { before: "other.".into(), after: ".weight".into() },
        _ => Renamed::Parts { before: "mlp.".into(), after: ".weight".into() },
    };
    let held = RefCell::new(Vec::new());
    let note = |weight: Held| held.borrow_mut().push((weight.name, weight.stored, weight.stack_idx));
    let source = WeightSource::from(&tensors).with_observer(&note);
    let weights = Weights::new(&ReferenceBackend, source, rename).unwrap();
    let x = Tensor::new(&ReferenceBackend, &[1.0, 10.0, 100.0], &[1, 3]);
    assert_eq!(weights.at("mlp").linear("1", 3, 1).unwrap().forward(&x).to_vec(), [543.0]);
    weights.at("mlp").linear("0", 3, 2).unwrap();
    assert_eq!(held.borrow()[0], ("mlp.1.weight".into(), "mlp.stack".into(), Some(1)));
    // What is no stack keeps its name.
    let message = weights.finish().unwrap_err().to_string();
    assert!(message.contains("mlp.stack[0] (F32 [1, 3], expected [2, 3])"), "{message}");
    assert!(message.contains("1 left over: plain"), "{message}");
}

#[test]
fn an_integer_weight_is_misshaped_and_ignorable_names_are_not_left_over() {
    let ids = TensorData::new(Dtype::I64, vec![1, 1], SharedBytes::from(vec![0; 8])).unwrap();
    let tensors = Checkpoint::from_tensors(vec![("a.weight".to_owned(), ids.clone()), ("ids".to_owned(), ids)]);
    let rename = |name: &str| if name == "ids" { Renamed::Ignored } else { keep(name) };
    let weights = Weights::new(&ReferenceBackend, &tensors, rename).unwrap();
    weights.linear("a", 1, 1).unwrap();
    let message = weights.finish().unwrap_err().to_string();
    assert!(message.contains("a.weight (I64 [1, 1], expected [1, 1])") && !message.contains("ids"), "{message}");
}

#[test]
#[should_panic(expected = "[1, 4] does not end in 3 features")]
fn a_wrong_input_names_both_shapes() {
    let linear = open(&checkpoint(&[("a.weight", &[2, 3])])).linear("a", 3, 2).unwrap();
    linear.forward(&Tensor::new(&ReferenceBackend, &[0.0; 4], &[1, 4]));
}

#[test]
fn a_backend_says_which_weight_it_cannot_hold() {
    let bytes = SharedBytes::from(vec![0; 4]);
    let data = TensorData::new(Dtype::I32, vec![1, 1], bytes).unwrap();
    assert!(ReferenceBackend.weight(data.into()).err().unwrap().contains("I32"));
}

/// What a small model would ask for.
fn load(weights: &Weights<ReferenceBackend>) -> Tensor<ReferenceBackend> {
    let table = weights.embedding("embed", 40, 64).unwrap();
    let up = weights.at("mlp").linear_bias("up", 64, 96).unwrap();
    let down = weights.at("mlp").linear("down", 96, 64).unwrap();
    let vision = weights.at("tower").vision();
    vision.at("deep").linear("fc", 64, 32).unwrap();
    vision.patch_embedding("patches", 1, 8, 32).unwrap();
    let head = weights.output("head", 64, 40).unwrap();
    let x = table.forward(&[3, 39]);
    head.forward(&down.forward(&up.forward(&x)))
}

fn held(source: WeightSource<'_>) -> (Vec<Held>, Vec<f32>) {
    let held = RefCell::new(Vec::new());
    let note = |weight| held.borrow_mut().push(weight);
    let weights = Weights::new(&ReferenceBackend, source.with_observer(&note), keep).unwrap();
    let logits = load(&weights).to_vec();
    weights.finish().unwrap();
    drop(weights);
    (held.into_inner(), logits)
}

#[test]
fn every_part_and_role_is_held_in_its_precision() {
    let random = RandomWeights::new(1);
    let precision = Precision { text: Quant::Q4, vision: Quant::Q8, group: None };
    let (weights, coarse) = held(WeightSource::from(&random).with_precision(precision).on_threads(2));
    let of = |name: &str| weights.iter().find(|weight| weight.name == name).unwrap();
    // Codes, and four bytes for scale and offset of every group.
    assert_eq!(of("embed.weight").bytes, 40 * (64 + 4));
    assert_eq!(of("mlp.up.weight").bytes, 96 * (32 + 4));
    assert_eq!(of("mlp.down.weight").bytes, 64 * (48 + 3 * 4));
    assert_eq!(of("mlp.up.bias").bytes, 96 * 4);
    assert_eq!(of("tower.deep.fc.weight").bytes, 32 * (64 + 4));
    assert_eq!(of("tower.patches.weight").bytes, 32 * 64 * 2);
    assert_eq!(of("head.weight").bytes, 40 * (64 + 4));
    assert_eq!((of("head.weight").role, of("head.weight").part), (Role::Output, Part::Text));
    assert_eq!((of("tower.patches.weight").role, of("tower.patches.weight").part), (Role::Patches, Part::Vision));

    let exact = held(WeightSource::from(&RandomWeights::new(1))).1;
    let largest = exact.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let worst = exact.iter().zip(&coarse).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest;
    assert!(worst > 1e-4 && worst < 0.15, "four bits change the logits by {worst}");
}

#[test]
fn a_plan_knows_what_a_load_will_hold_and_reads_nothing() {
    let shapes: &[(&str, &[usize])] = &[
        ("embed.weight", &[40, 64]),
        ("mlp.up.weight", &[96, 64]),
        ("mlp.up.bias", &[96]),
        ("mlp.down.weight", &[64, 96]),
        ("tower.deep.fc.weight", &[32, 64]),
        ("tower.patches.weight", &[32, 1, 8, 8]),
        ("tower.patches.bias", &[32]),
        ("head.weight", &[40, 64]),
    ];
    let tensors = checkpoint(shapes);
    for text in [Quant::None, Quant::Q8, Quant::Q4] {
        let source = WeightSource::from(&tensors).with_precision(Precision { text, ..Precision::default() });
        let planned = RefCell::new(Vec::new());
        let note = |weight| planned.borrow_mut().push(weight);
        let weights = open(source.only_plans().with_observer(&note));
        weights.embedding("embed", 40, 64).unwrap();
        weights.at("mlp").linear_bias("up", 64, 96).unwrap();
        weights.at("mlp").linear("down", 96, 64).unwrap();
        weights.at("tower").vision().at("deep").linear("fc", 64, 32).unwrap();
        weights.at("tower").vision().patch_embedding("patches", 1, 8, 32).unwrap();
        weights.output("head", 64, 40).unwrap();
        weights.finish().unwrap();
        assert_eq!(*planned.borrow(), held(source).0);
    }
    let weights = open(WeightSource::from(&tensors).only_plans());
    weights.linear("embed", 64, 41).unwrap();
    assert!(weights.finish().unwrap_err().to_string().contains("embed.weight (F32 [40, 64], expected [41, 64])"));
}

#[test]
fn what_codes_cannot_hold_stays_a_float() {
    let values: Vec<f32> = (0..64).map(|at| if at == 5 { f32::INFINITY } else { 1.0 }).collect();
    let data = TensorData::from_f32(vec![1, 64], &values).unwrap();
    let tensors = Checkpoint::from_tensors(vec![("a.weight".to_owned(), data)]);
    let precision = Precision { text: Quant::Q4, ..Precision::default() };
    let linear = open(WeightSource::from(&tensors).with_precision(precision)).linear("a", 64, 1).unwrap();
    let x = Tensor::new(&ReferenceBackend, &[1.0; 64], &[1, 64]);
    assert_eq!(linear.forward(&x).to_vec(), [f32::INFINITY]);
}
