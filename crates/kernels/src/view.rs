//! [`MatrixMut`]: a rectangle of a row-major matrix, so that threads can own disjoint columns of the same rows.

use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Range;

/// Exclusive access to some rows and columns of a row-major matrix.
///
/// Rows and columns keep their numbers in the whole matrix, so that a part knows which part it is.
pub struct MatrixMut<'a> {
    /// Row 0, column 0 of the whole matrix, were it there; only the rectangle is reached through it.
    base: *mut f32,
    /// From row to row.
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is exclusive access to its rectangle and to nothing else, like `&mut [f32]`, which is `Send`.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// All of a matrix of `rows` rows.
    ///
    /// # Panics
    /// If the rows do not divide the values.
    #[track_caller]
    pub fn new(values: &'a mut [f32], rows: usize) -> Self {
        assert!(rows > 0 && values.len().is_multiple_of(rows), "{} values are not {rows} rows", values.len());
        let width = values.len() / rows;
        Self { base: values.as_mut_ptr(), width, rows: 0..rows, columns: 0..width, values: PhantomData }
    }

    /// Some columns of a matrix of `rows` rows that lie alone in memory.
    ///
    /// # Panics
    /// If the values are not so many rows and columns.
    #[track_caller]
    pub fn of_columns(values: &'a mut [f32], rows: usize, columns: Range<usize>) -> Self {
        let width = columns.len();
        assert!(rows > 0 && values.len() == rows * width, "{} values are not {rows} rows of {columns:?}", values.len());
        let base = values.as_mut_ptr().wrapping_sub(columns.start);
        Self { base, width, rows: 0..rows, columns, values: PhantomData }
    }

    /// The rows of this part.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of this part.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// This part's columns of a row (numbered as in the whole matrix).
    ///
    /// # Panics
    /// If the row is not in this part.
    #[inline(always)]
    #[track_caller]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} is not in {:?}", self.rows);
        let first = self.base.wrapping_add(row * self.width + self.columns.start);
        // SAFETY: the range lies within the values that `new` or `of_columns` borrowed, and within this view's
        // rectangle, which no other view overlaps (`take_rows` and `tiles` only cut, `reborrow` lends); `&mut self`
        // keeps it borrowed.
        unsafe { std::slice::from_raw_parts_mut(first, self.columns.len()) }
    }

    /// The same rectangle for a while.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        self.part(self.rows(), self.columns())
    }

    /// Cuts the first `count` rows off.
    ///
    /// # Panics
    /// If there are not as many.
    #[track_caller]
    pub fn take_rows(&mut self, count: usize) -> MatrixMut<'a> {
        assert!(count <= self.rows.len(), "cannot take {count} of rows {:?}", self.rows);
        let middle = self.rows.start + count;
        let taken = self.part(self.rows.start..middle, self.columns());
        self.rows.start = middle;
        taken
    }

    /// Cuts the view into tiles of at most that size: top to bottom, left to right within the same rows.
    ///
    /// # Panics
    /// If a size is zero.
    #[track_caller]
    pub fn tiles(self, tile_rows: usize, tile_columns: usize) -> Tiles<'a> {
        assert!(tile_rows > 0 && tile_columns > 0, "tiles of {tile_rows} x {tile_columns}");
        let next = (self.rows.start, self.columns.start);
        Tiles { whole: self, tile_rows, tile_columns, next }
    }

    fn part(&self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'a> {
        MatrixMut { base: self.base, width: self.width, rows, columns, values: PhantomData }
    }
}

/// The tiles of a matrix, each one once: see [`MatrixMut::tiles`].
pub struct Tiles<'a> {
    whole: MatrixMut<'a>,
    tile_rows: usize,
    tile_columns: usize,
    /// First row and column of the next tile.
    next: (usize, usize),
}

impl<'a> Iterator for Tiles<'a> {
    type Item = MatrixMut<'a>;

    fn next(&mut self) -> Option<MatrixMut<'a>> {
        let (row, column) = self.next;
        let (rows, columns) = (&self.whole.rows, &self.whole.columns);
        if row >= rows.end || columns.is_empty() {
            return None;
        }
        let row_end = rows.end.min(row + self.tile_rows);
        let column_end = columns.end.min(column + self.tile_columns);
        self.next = if column_end < columns.end { (row, column_end) } else { (row_end, columns.start) };
        Some(self.whole.part(row..row_end, column..column_end))
    }
}

impl FusedIterator for Tiles<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_element_once() {
        for (tile_rows, tile_columns) in [(1, 1), (2, 3), (3, 7), (5, 2), (9, 9)] {
            let mut values = vec![0.0; 5 * 7];
            for mut tile in MatrixMut::new(&mut values, 5).tiles(tile_rows, tile_columns) {
                for row in tile.rows() {
                    let columns = tile.columns();
                    for (value, column) in tile.row(row).iter_mut().zip(columns) {
                        *value += (row * 7 + column + 1) as f32;
                    }
                }
            }
            assert!(values.iter().enumerate().all(|(at, &value)| value == (at + 1) as f32), "{values:?}");
        }
    }

    #[test]
    fn columns_that_lie_alone_keep_their_numbers() {
        let mut values = vec![0.0; 3 * 5];
        for mut tile in MatrixMut::of_columns(&mut values, 3, 20..25).tiles(2, 2) {
            for row in tile.rows() {
                let columns = tile.columns();
                tile.row(row).iter_mut().zip(columns).for_each(|(value, column)| *value = (100 * row + column) as f32);
            }
        }
        let expected = (0..3).flat_map(|row| (20..25).map(move |column| (100 * row + column) as f32));
        assert_eq!(values, expected.collect::<Vec<_>>());
    }

    #[test]
    fn rows_are_taken_from_the_top() {
        let mut values = vec![0.0; 12];
        let mut rest = MatrixMut::new(&mut values, 4);
        let mut top = rest.take_rows(1);
        top.row(0).fill(1.0);
        rest.row(3).fill(2.0);
        assert_eq!((top.rows(), rest.rows(), rest.columns()), (0..1, 1..4, 0..3));
        assert_eq!(values, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn views_can_be_written_from_threads() {
        let mut values = vec![0.0; 64 * 64];
        std::thread::scope(|scope| {
            for mut tile in MatrixMut::new(&mut values, 64).tiles(64, 16) {
                scope.spawn(move || tile.rows().for_each(|row| tile.row(row).fill(row as f32)));
            }
        });
        assert!(values.chunks(64).enumerate().all(|(row, values)| values.iter().all(|&value| value == row as f32)));
    }

    #[test]
    #[should_panic(expected = "row 2 is not in 0..2")]
    fn a_row_of_somebody_else_is_refused() {
        let mut values = [0.0; 6];
        MatrixMut::new(&mut values, 3).take_rows(2).row(2);
    }

    #[test]
    fn nothing_is_cut_into_nothing() {
        assert_eq!(MatrixMut::new(&mut [], 3).tiles(1, 1).count(), 0);
    }
}
