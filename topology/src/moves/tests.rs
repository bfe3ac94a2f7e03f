mod checks;
mod golden;
mod least;
mod model;
mod random;
mod rules;
mod story;
