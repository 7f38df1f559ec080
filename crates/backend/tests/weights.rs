//! Everything that is wrong with a checkpoint is reported at once, by name.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use ocelli_backend::{Backend, Error, Renamed, Tensor, Weights};
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

fn open(tensors: &[(&str, &[usize])]) -> Weights<ReferenceBackend> {
    Weights::new(&ReferenceBackend, &checkpoint(tensors), keep).unwrap()
}

#[test]
fn a_layer_reads_its_own_tensors() {
    let weights = open(&[("mlp.up.weight", &[2, 3]), ("mlp.up.bias", &[2])]);
    let linear = weights.at("mlp").linear_bias("up", 3, 2).unwrap();
    weights.finish().unwrap();
    let x = Tensor::new(&ReferenceBackend, &[1.0, 0.0, 2.0], &[1, 3]);
    assert_eq!(linear.forward(&x).to_vec(), [4.0, 14.0]);
}

#[test]
fn missing_left_over_and_misshaped_tensors_are_all_listed() {
    let weights = open(&[("a.weight", &[2, 3]), ("b.weight", &[3, 2]), ("spare", &[1])]);
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
    let message = open(&tensors).finish().unwrap_err().to_string();
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
    let linear = open(&[("a.weight", &[2, 3])]).linear("a", 3, 2).unwrap();
    linear.forward(&Tensor::new(&ReferenceBackend, &[0.0; 4], &[1, 4]));
}

#[test]
fn a_backend_says_which_weight_it_cannot_hold() {
    let bytes = SharedBytes::from(vec![0; 4]);
    let data = TensorData::new(Dtype::I32, vec![1, 1], bytes).unwrap();
    assert!(ReferenceBackend.weight(data.into()).err().unwrap().contains("I32"));
}
